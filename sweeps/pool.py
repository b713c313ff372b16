"""Worker processes on one machine: one a GPU, or one a core, each with its share of the cores."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt

from recallbench import ranks
from recallbench.any_run import Settings
from recallbench.interrupt import CannotGoOn, StopRequest

PERIOD = 0.2
"""Seconds between two looks at the workers."""

Place = Mapping[str, str]
"""What a worker's environment says of the GPU and the cores that are its own."""


class PoolFailed(CannotGoOn):
    """Workers could not go on, each for a reason that it has said."""


class Worker(NamedTuple):
    """A worker process, and the thread that hands it its jobs and listens to what it says."""

    place: Place
    process: subprocess.Popen[bytes]
    listener: threading.Thread


class PoolConfig(BaseModel):
    """How many workers there are: `workers` or, where it is null, `workers_per_gpu` a GPU, and one a core on a CPU."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    workers: PositiveInt | None = None
    workers_per_gpu: PositiveInt = 1


def places(device: str, workers: int | None = None, workers_per_gpu: int = 1, alone: bool = False) -> list[Place]:
    """Where workers go on this machine, in turn where there are more of them than GPUs.

    **Arguments:** `device`: as in `ExecutionConfig`; `alone`: as in `SweepConfig`; the others as in `PoolConfig`.
    """
    gpus = _gpus(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = workers or (len(gpus) * workers_per_gpu if gpus else cores)
    if alone:
        count = min(count, max(1, len(gpus)))
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // count)))
    return [{"OMP_NUM_THREADS": threads, **(gpus[i % len(gpus)] if gpus else {})} for i in range(count)]


def _gpus(device: str) -> list[Place]:
    """The GPUs to use; none where the device is the CPU."""
    if device == "cpu" or not torch.cuda.is_available():
        return []
    if ":" in device:  # one alone, which goes by its number among those that are visible
        return [{}]
    inherited = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    names = map(str, range(count)) if inherited is None else inherited.split(",")[:count]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names]


def run_pool(jobs: Sequence[Settings], at: Sequence[Place], stop: StopRequest, say: Callable[[str], None]) -> None:
    """Carry out jobs with a worker process at each place, and return when none is left.

    Every worker walks the whole list; claims on disk decide who does what. One that is killed is replaced, unless it
    did not even start. Once `stop` is made the workers save and leave.

    **Arguments:** `say`: told each line that workers write, once. **Raises** `PoolFailed` for what kept workers from
    going on, after the others have done what they can.
    """
    known: set[str] = set()

    def hear(line: str) -> None:
        if line not in known:
            known.add(line)
            say(line)

    todo = (json.dumps(jobs) + "\n").encode()
    workers = [_start(place, todo, hear) for place in at[: max(1, len(jobs))]]
    failed: list[str] = []
    asked = False
    try:
        while workers:
            time.sleep(PERIOD)
            if stop.made and not asked:
                asked = True
                for worker in workers:
                    worker.process.send_signal(signal.SIGTERM)
            for i, worker in reversed(list(enumerate(workers))):
                status = worker.process.poll()
                if status is None:
                    continue
                began = _close(worker)
                if status < 0 and began and not asked:
                    workers[i] = _start(worker.place, todo, hear)
                    continue
                del workers[i]
                if status < 0 and not asked:
                    failed.append(f"a worker was killed by {signal.Signals(-status).name} before it could begin")
                elif status > 0:
                    failed.append(f"a worker ended with status {status}")
    finally:
        for worker in workers:  # where a second signal ends this process at once
            worker.process.kill()
            worker.process.wait()
            _close(worker)
    if failed:
        raise PoolFailed("\n".join(dict.fromkeys(failed)))


def _start(place: Place, todo: bytes, hear: Callable[[str], None]) -> Worker:
    """A worker in a session of its own, so that Ctrl-C reaches this process alone, which passes it on."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sweeps.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**ranks.alone(os.environ), **place},
        start_new_session=True,
    )
    listener = threading.Thread(target=_converse, args=(process, todo, hear), daemon=True)
    listener.start()
    return Worker(place, process, listener)


def _converse(process: subprocess.Popen[bytes], todo: bytes, hear: Callable[[str], None]) -> None:
    assert process.stdin is not None
    assert process.stderr is not None
    with suppress(BrokenPipeError):
        process.stdin.write(todo)
        process.stdin.flush()  # and left open: its end tells the worker that this process is gone
    for line in process.stderr:
        hear(line.decode(errors="replace").rstrip())


def _close(worker: Worker) -> bool:
    """Let go of a worker that has ended: whether it had begun with its jobs."""
    process = worker.process
    assert process.stdin is not None
    assert process.stdout is not None
    worker.listener.join(timeout=1)  # a process that it started may hold its end open
    with suppress(BrokenPipeError):
        process.stdin.close()
    with process.stdout:
        return bool(process.stdout.read())
