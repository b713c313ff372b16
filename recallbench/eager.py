"""Running as written what is compiled for training."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def eagerly(function: Callable[P, T]) -> Callable[P, T]:
    """For a few batches of shapes of their own, which would not pay for compiling.

    Torch's compiler takes most of a second to import, so a process that has compiled nothing is spared it.
    """

    @functools.wraps(function)
    def as_written(*args: P.args, **kwargs: P.kwargs) -> T:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        with torch.compiler.set_stance("force_eager"):
            return function(*args, **kwargs)

    return as_written
