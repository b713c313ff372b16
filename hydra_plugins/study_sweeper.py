"""Where Hydra looks for plugins: it accepts sweepers from this package alone. What this one does is in `sweeps`."""

import sys
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from rich.console import Console


class StudySweeper(Sweeper):
    """`-m` with comma-separated values, or `+study=NAME`: a union of product grids, checked as a whole, then run."""

    def __init__(self, **_: Any):
        """Hydra passes the axes with references filled in, with those of no point, so that `sweep` reads them anew."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        # Hydra imports this file at every start; what it needs of torch waits until there is something to sweep.
        from sweeps.compose import Composer  # noqa: PLC0415
        from sweeps.foreign import Foreign  # noqa: PLC0415
        from sweeps.grid import axes_of, expand  # noqa: PLC0415
        from sweeps.study import JobLauncher, run_study  # noqa: PLC0415

        config, context, launcher = self.config, self.hydra_context, self.launcher
        assert config is not None
        assert context is not None
        assert launcher is not None
        loader = context.config_loader
        run_study(
            expand(arguments, *axes_of(config), loader),
            compose=Composer(lambda overrides: loader.load_sweep_config(config, overrides), loader),
            launcher=launcher if isinstance(launcher, JobLauncher) else Foreign(launcher),
            console=Console(),
            module=config.hydra.job.name,
            command=sys.argv[1:],
        )
