"""Where Hydra looks for plugins: it accepts launchers from this package alone. What this one does is in `sweeps`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console

if TYPE_CHECKING:
    from recallbench.any_run import AnyRun
    from recallbench.execution import ExecutionConfig
    from sweeps.study import Job


class SlurmLauncher(Launcher):
    """Jobs in the tasks of SLURM job arrays."""

    submits = True

    def __init__(self, **settings: Any):
        self.settings = {
            name: OmegaConf.to_container(value) if isinstance(value, DictConfig | ListConfig) else value
            for name, value in settings.items()
        }

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """It needs nothing of these: its tasks know neither Hydra nor the command that submitted them."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from models.settings import SettingError  # noqa: PLC0415

        raise SettingError("hydra/launcher", "slurm", "it goes with hydra/sweeper=study")

    # Hydra imports this file at every start; what is imported below waits until there is something to launch.

    def check(self, runs: "Sequence[AnyRun]", execution: "ExecutionConfig") -> None:
        from sweeps.slurm import check_slurm  # noqa: PLC0415

        self.config = check_slurm(self.settings)

    def launch_jobs(self, jobs: "Sequence[Job]", execution: "ExecutionConfig", console: Console) -> None:
        from sweeps.slurm import launch_on_slurm  # noqa: PLC0415

        launch_on_slurm(jobs, self.config, execution, console)
