"""Carrying out runs one after the other, each under a claim, and a record for each, also where it fails."""

import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any, TypeVar

import torch

from recallbench.any_run import AnyRun
from recallbench.checkpoint import WritableDirectory
from recallbench.claim import ClaimLost
from recallbench.device import choose_device
from recallbench.disk import DiskTrouble
from recallbench.execution import ExecutionConfig
from recallbench.holding import claimed
from recallbench.interrupt import Stopped, StopRequest
from recallbench.logger import open_logger
from recallbench.memory import out_of_memory
from recallbench.provenance import provenance

R = TypeVar("R", bound=AnyRun)

Work = Callable[[WritableDirectory[R], torch.device, StopRequest], dict[str, Any]]
"""From the folder of a run what its record says beside the settings. **Raises** `Stopped` once asked to stop."""


def one_by_one(runs: Sequence[R], work: Work[R], execution: ExecutionConfig, stop: StopRequest) -> None:
    """Give each run a record, unless it has one; what another process holds is left to it.

    **Raises** `Stopped` once `stop` is made; `DiskTrouble`.
    """
    for run in runs:
        if stop.made:
            raise Stopped
        directory = WritableDirectory(execution.runs, run)
        if directory.has_record() and not execution.rerun:
            continue
        with claimed(directory, execution) as ours:
            if ours:
                _record(directory, work, execution, stop)
    if stop.made:
        raise Stopped


def _record(directory: WritableDirectory[R], work: Work[R], execution: ExecutionConfig, stop: StopRequest) -> None:
    device = choose_device(execution.device)
    status, reason = "completed", None
    with suppress(ClaimLost), open_logger(execution.logger, directory.run) as logger:
        try:
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                measured = work(directory, device, stop)
        except (ClaimLost, DiskTrouble):
            raise
        except Exception as error:
            status = "out_of_memory" if out_of_memory(error) else "failed"
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            measured = {"provenance": provenance(device, 1)}
            directory.write_error(traceback.format_exc())
        logger.finish(directory.write_record(execution.study, status, reason, measured))
