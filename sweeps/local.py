"""`hydra/launcher=local`: a study spreads over the GPUs or the cores of this machine."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from models.settings import SettingErrors, check
from recallbench.any_run import AnyRun
from recallbench.device import check_device
from recallbench.execution import ExecutionConfig
from recallbench.interrupt import Stopped, deadline, stop_on_signals
from sweeps.mps import side_by_side
from sweeps.pool import PoolConfig, places, run_pool
from sweeps.study import Job


def check_local(settings: dict[str, Any], runs: Sequence[AnyRun], execution: ExecutionConfig) -> PoolConfig:
    """The launcher's settings. **Raises** `SettingError` or `SettingErrors` for them, or for a run's device."""
    check_device(runs, execution)
    try:
        return check(PoolConfig, settings)
    except SettingErrors as found:
        raise SettingErrors([error.within("hydra.launcher") for error in found.errors]) from None


def launch_locally(jobs: Sequence[Job], pool: PoolConfig, execution: ExecutionConfig, console: Console) -> None:
    """Carry out jobs. **Raises** `Stopped` at a signal, and `PoolFailed`."""
    at = places(execution.device, pool.workers, pool.workers_per_gpu, alone=execution.sweep.alone)
    with side_by_side(at) as at, stop_on_signals(deadline=deadline(execution.sweep.time_budget)) as stop:
        run_pool(
            [job.settings for job in jobs],
            at,
            stop,
            say=lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
        )
        if stop.signal is not None:
            raise Stopped
