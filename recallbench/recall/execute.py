"""Carrying out evaluations: one after the other, each under a claim, and a record for each, also where it fails."""

import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, suppress

import torch

from recallbench.checkpoint import WritableDirectory
from recallbench.claim import ClaimLost
from recallbench.config import ExecutionConfig
from recallbench.device import choose_device
from recallbench.holding import claimed
from recallbench.interrupt import Stopped, StopRequest
from recallbench.logger import open_logger
from recallbench.memory import out_of_memory
from recallbench.provenance import provenance
from recallbench.recall.evaluate import evaluate
from recallbench.recall.evaluation import Evaluation

PERIOD = 0.5
"""Seconds between two notes of how far an evaluation is."""


def execute(runs: Sequence[Evaluation], execution: ExecutionConfig, stop: StopRequest) -> None:
    """Give each evaluation a record, unless it has one; what another process holds is left to it.

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
                _record(directory, execution, stop)
    if stop.made:
        raise Stopped


def _record(directory: WritableDirectory[Evaluation], execution: ExecutionConfig, stop: StopRequest) -> None:
    device = choose_device(execution.device)
    told = 0.0

    def tell(done: int, of: int) -> None:
        nonlocal told
        if time.monotonic() - told > PERIOD:
            told = time.monotonic()
            directory.write_log([{"prompt": done, "prompts": of}])

    status, reason = "completed", None
    with suppress(ClaimLost), open_logger(execution.logger, directory.run) as logger:
        try:
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                measured = evaluate(directory.run, device, stop, tell)
        except ClaimLost:
            raise
        except Exception as error:
            status = "out_of_memory" if out_of_memory(error) else "failed"
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            measured = {"provenance": provenance(device, 1)}
            directory.write_error(traceback.format_exc())
        logger.finish(directory.write_record(execution.study, status, reason, measured))
