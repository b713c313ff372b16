"""Carrying out evaluations."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from recallbench.checkpoint import WritableDirectory
from recallbench.execution import ExecutionConfig
from recallbench.interrupt import StopRequest
from recallbench.one_by_one import one_by_one
from recallbench.recall.evaluate import evaluate
from recallbench.recall.evaluation import Evaluation

PERIOD = 0.5
"""Seconds between two notes of how far an evaluation is."""


def execute(runs: Sequence[Evaluation], execution: ExecutionConfig, stop: StopRequest) -> None:
    """As `one_by_one`."""
    one_by_one(runs, _evaluate, execution, stop)


def _evaluate(directory: WritableDirectory[Evaluation], device: torch.device, stop: StopRequest) -> dict[str, Any]:
    told = 0.0

    def tell(done: int, of: int) -> None:
        nonlocal told
        if time.monotonic() - told > PERIOD:
            told = time.monotonic()
            directory.write_log([{"prompt": done, "prompts": of}])

    return evaluate(directory.run, device, stop, tell)
