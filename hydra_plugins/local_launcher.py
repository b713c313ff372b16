"""Where Hydra looks for plugins: it accepts launchers from this package alone. What this one does is in `sweeps`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from rich.console import Console

if TYPE_CHECKING:
    from recallbench.any_run import AnyRun
    from recallbench.execution import ExecutionConfig
    from sweeps.study import Job


class LocalLauncher(Launcher):
    """Jobs in worker processes on this machine.

    Hydra imports this file at every start; what it needs of torch waits until there is something to launch.
    """

    submits = False

    def __init__(self, **settings: Any):
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """It needs nothing of these: its workers know neither Hydra nor the command that started them."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from models.settings import SettingError  # noqa: PLC0415

        raise SettingError("hydra/launcher", "local", "it goes with hydra/sweeper=study")

    def check(self, runs: "Sequence[AnyRun]", execution: "ExecutionConfig") -> None:
        from sweeps.local import check_local  # noqa: PLC0415

        self.pool = check_local(self.settings, runs, execution)

    def launch_jobs(self, jobs: "Sequence[Job]", execution: "ExecutionConfig", console: Console) -> None:
        from sweeps.local import launch_locally  # noqa: PLC0415

        launch_locally(jobs, self.pool, execution, console)
