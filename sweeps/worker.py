"""A worker: goes through the jobs of a study and does what no other process does.

`python -m sweeps.worker` reads its jobs, as JSON, from the first line of its standard input. It stops politely at a
signal, and where that input ends, since then the process that started it is gone.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Sequence

from rich.console import Console

from models.settings import SettingError, SettingErrors
from recallbench.any_run import AnyRun, Settings
from recallbench.claim import Holder, holder
from recallbench.disk import DiskTrouble
from recallbench.execution import ExecutionConfig
from recallbench.interrupt import USUAL, Stopped, StopRequest
from recallbench.perform import perform
from recallbench.record import RunDirectory
from recallbench.runs import execution_of, runs_of

PERIOD = 0.5
"""Seconds between two looks at what others hold."""

Job = tuple[Sequence[AnyRun], ExecutionConfig]


def carry_out(jobs: Iterable[Settings], stop: StopRequest) -> None:
    """Give the runs of all jobs, each a configuration, a record, unless a live process elsewhere is at them.

    There is no queue: any number of workers walk the same list, and claims on disk decide who does what. Returns
    early, with everything saved, once `stop` is made.
    **Raises** `SettingErrors`, after all that can be done, for what does not run on this machine; `DiskTrouble`.
    """
    errors: list[SettingError] = []
    walked: list[Job] = []
    try:
        for settings in jobs:
            try:
                job = runs_of(settings), execution_of(settings)
                _carry_out(job, stop)
                walked.append(job)
            except SettingErrors as found:
                errors += found.errors
            except SettingError as error:
                errors.append(error)
        _look_again(walked, stop)
    except Stopped:
        return
    if errors:
        raise SettingErrors(errors)


def _carry_out(job: Job, stop: StopRequest) -> None:
    if stop.made:
        raise Stopped
    perform(*job, stop)


def _look_again(jobs: Sequence[Job], stop: StopRequest) -> None:
    """Do what others have let go of since, or have died at.

    A run whose holder shows another heartbeat, or is a live process of this machine, is left to it for good.
    """
    seen: dict[str, Holder] = {}
    while True:
        waiting: list[Job] = []
        for runs, execution in jobs:
            left = [run for run in runs if not RunDirectory(execution.runs, run.identity).has_record()]
            held = {run.identity: _holder(run, execution) for run in left}
            free = [run for run in left if held[run.identity] is None]
            if free:
                _carry_out((free, execution), stop)
            unsure = [
                run
                for run in left
                if (now := held[run.identity]) is None or (not now.here and now == seen.setdefault(run.identity, now))
            ]
            if unsure:
                waiting.append((unsure, execution))
        if not waiting:
            return
        jobs = waiting
        if stop.made:
            raise Stopped
        time.sleep(PERIOD)


def _holder(run: AnyRun, execution: ExecutionConfig) -> Holder | None:
    """Who has claimed a run, or else the training that it waits for."""
    own, training = (RunDirectory(execution.runs, each.identity) for each in (run, run.trained))
    return holder(own.path) or (None if training.has_record() else holder(training.path))


def main() -> None:
    """Carry out the jobs that are given. What is wrong is said in a sentence a line, and ends with status 1."""
    started = os.dup(1)
    os.dup2(2, 1)  # what libraries print is for the reader of errors
    stop = StopRequest()
    for number in USUAL:
        signal.signal(number, stop.ask)
    jobs = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_stop_at_end_of_input, args=(stop,), daemon=True).start()
    os.write(started, b"started")
    os.close(started)
    try:
        carry_out(jobs, stop)
    except (SettingErrors, DiskTrouble) as error:
        Console(stderr=True).print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def _stop_at_end_of_input(stop: StopRequest) -> None:
    while os.read(0, 1):
        pass
    stop.ask(signal.SIGHUP)


if __name__ == "__main__":
    main()
