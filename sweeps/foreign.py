"""Launchers that know Hydra alone: `hydra/launcher=basic`, and those of others."""

from collections.abc import Sequence

from hydra.plugins.launcher import Launcher
from rich.console import Console

from recallbench.any_run import AnyRun
from recallbench.execution import ExecutionConfig
from sweeps.study import Job


class Foreign:
    """Jobs go to a launcher of Hydra's as lists of overrides."""

    submits = False

    def __init__(self, launcher: Launcher):
        self.launcher = launcher

    def check(self, runs: Sequence[AnyRun], execution: ExecutionConfig) -> None:
        """Where they run is for the launcher to know."""

    def launch_jobs(self, jobs: Sequence[Job], execution: ExecutionConfig, console: Console) -> None:
        self.launcher.launch([job.overrides for job in jobs], initial_job_idx=0)
