"""A polite stop: the first signal asks, the training loop saves and leaves; the second ends the process at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(KeyboardInterrupt):
    """Training stopped at a signal, after saving a checkpoint of every member; no handler of errors swallows it."""


class StopRequest:
    """Whether someone has asked to stop."""

    made = False


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; a second one has its usual effect."""
    request = StopRequest()
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        request.made = True
        for each, handler in usual.items():
            signal.signal(each, handler)

    for number in usual:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
