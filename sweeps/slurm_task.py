"""`python -m sweeps.slurm_task LAUNCH`: a task of a job array, which carries out its jobs of a launch.

It starts workers (`sweeps/pool.py`), one for each GPU or CPU that it has, and hears SLURM's signals itself:

* SIGUSR2, `signal_delay` seconds before the time limit: the workers save and leave, and the task is queued again,
  to go on from there. One that got nowhere since it began is not, since it would get nowhere for ever.
* SIGTERM, of scancel, preemption or the time limit itself: the workers save and leave, and so does the task. What is
  preempted SLURM queues again by itself; what was cancelled stays away.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from recallbench.interrupt import StopRequest, deadline
from recallbench.record import RunDirectory
from sweeps.launches import Settings, read_launch
from sweeps.squeue import SlurmUnavailable, ask

LIMIT = signal.SIGUSR2
TOO_SHORT = "a longer hydra.launcher.time would help"


def main() -> int:
    """Carry out what the launch has for this task. 0 if nothing went wrong, even where something is left to do."""
    # Blocked, and so in the workers: they are told by the pool, and SLURM signals every process of a task.
    signal.pthread_sigmask(signal.SIG_BLOCK, {LIMIT})
    array, index = os.environ["SLURM_ARRAY_JOB_ID"], os.environ["SLURM_ARRAY_TASK_ID"]
    launch = read_launch(Path(sys.argv[1]))
    if launch is None:
        _say(f"{sys.argv[1]} is gone, and with it what this task was to do")
        return 1
    jobs = launch.jobs(int(index))
    directories = [RunDirectory(jobs[0]["runs"], run) for run in launch.tasks[int(index)]]
    before = _progress(directories)
    stop = StopRequest()
    signal.signal(signal.SIGTERM, stop.ask)
    at_limit = threading.Event()
    threading.Thread(target=_wait_for_limit, args=(stop, at_limit), daemon=True).start()
    failed = _carry_out(jobs, stop)
    left = sum(not directory.has_record() for directory in directories)
    _say(f"{len(directories) - left} of {len(directories)} runs done")
    if failed or not left:
        return int(failed)
    if not at_limit.is_set():
        if stop.out_of_time:
            _say("the time budget is over; the same command goes on from here")
        return 0
    if _progress(directories) == before:
        _say(f"the time limit comes before anything could be saved, and would again; {TOO_SHORT}")
        return 1
    try:
        ask("scontrol", "requeue", f"{array}_{index}")  # by its id alone, the first task would be the whole array
    except SlurmUnavailable as error:
        _say(f"not queued again: {error}; the command that launched it goes on from here")
        return 1
    _say("queued again, to go on from here")
    return 0


def _carry_out(jobs: Sequence[Settings], stop: StopRequest) -> bool:
    """Whether something went wrong that is no run's own."""
    import torch  # noqa: PLC0415 - takes seconds, in which signals are to be heard already

    from recallbench.runs import execution_of  # noqa: PLC0415
    from sweeps.pool import PoolFailed, places, run_pool  # noqa: PLC0415

    execution = execution_of(jobs[0])
    stop.deadline = deadline(execution.sweep.time_budget)
    gpus = 0 if execution.device == "cpu" else torch.cuda.device_count()
    cpus = int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    workers = min(gpus or cpus, len(jobs))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpus // workers)))  # not every cluster binds to what it gives
    try:
        run_pool(jobs, places(execution.device, workers, alone=execution.sweep.alone), stop, _say)
    except PoolFailed as error:
        _say(str(error))
        return True
    return False


def _wait_for_limit(stop: StopRequest, at_limit: threading.Event) -> None:
    signal.sigwait({LIMIT})
    at_limit.set()
    stop.ask(LIMIT)


def _progress(directories: Sequence[RunDirectory]) -> set[tuple[Path, int]]:
    """The records and checkpoints that there are, each with the time of its writing."""
    found = set()
    for directory in directories:
        for path in (directory.record_path, directory.checkpoint_path):
            try:
                found.add((path, path.stat().st_mtime_ns))
            except FileNotFoundError:
                continue
    return found


def _say(sentence: str) -> None:
    Console().print(sentence, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
