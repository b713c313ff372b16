"""A polite stop: the first signal asks, or the end of the time budget; the second signal ends the process at once.

The training loop saves and leaves.
"""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from recallbench import STARTED

USUAL = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Training stopped at a request, after saving a checkpoint of every member; no handler of errors swallows it."""


class CannotGoOn(Exception):
    """What keeps a process from going on, in a sentence that ends it with status 1."""


class StopRequest:
    """Whether it is time to stop: since a signal has asked for it, or since `deadline` has passed."""

    signal: int | None = None
    """The signal that asked."""

    def __init__(self, deadline: float | None = None):
        self.deadline = deadline

    @property
    def made(self) -> bool:
        return self.signal is not None or self.out_of_time

    @property
    def out_of_time(self) -> bool:
        """Whether the deadline, a time of `time.monotonic`, has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """Ask for a stop, as a signal's handler."""
        self.signal = number


def deadline(budget: float | None) -> float | None:
    """When to stop so that this process is gone `budget` seconds after its start, saving included."""
    return None if budget is None else STARTED + budget - min(30, budget / 10)


@contextmanager
def stop_on_signals(numbers: Sequence[int] = USUAL, deadline: float | None = None) -> Iterator[StopRequest]:
    """Turn the first of some signals into a request; a second one has its usual effect."""
    request = StopRequest(deadline)
    usual = {number: signal.getsignal(number) for number in numbers}

    def ask(number: int, frame: FrameType | None) -> None:
        request.ask(number)
        for each, handler in usual.items():
            signal.signal(each, handler)

    for number in usual:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
