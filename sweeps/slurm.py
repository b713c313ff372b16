"""Runs as tasks of SLURM job arrays.

From submitit comes what depends on SLURM alone: options written as an sbatch script with its srun line, the call of
sbatch, the array's id. Its own way of running tasks is left out (and with it hydra-submitit-launcher), since there

* a function is pickled for every task and put in its place only after sbatch has returned, so that a login process
  killed in between leaves tasks without anything to do;
* a task saves within a signal handler, in the middle of whatever Python was doing;
* a task is requeued a fixed number of times, however much or little it did since the last;
* what becomes of tasks is asked of sacct, which not every cluster has.

Here a launch is one file (`sweeps/launches.py`), written before sbatch is called; its tasks run `sweeps.slurm_task`,
which reads their line of it. The comment of the array is the launch's folder, so that squeue's lines lead back to runs.
"""

import os
import re
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Annotated, NamedTuple

from annotated_types import Gt
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt
from rich.console import Console
from submitit.core.utils import FailedJobError
from submitit.helpers import clean_env
from submitit.slurm.slurm import SlurmExecutor

from models.settings import SettingError, SettingErrors, check
from recallbench.execution import ExecutionConfig
from recallbench.interrupt import CannotGoOn
from recallbench.record import RunDirectory
from sweeps.launches import Settings, launch_folder, read_launch, write_launch
from sweeps.squeue import SlurmUnavailable, ask, job_name, queued
from sweeps.study import Job

PERIOD = 5.0
"""Seconds between two looks at the queue while waiting."""

NAMELESS = "sweep"
"""What runs are queued as that are of no study."""

OURS = ("array", "comment", "error", "job-name", "open-mode", "output", "requeue", "signal")
"""Options of sbatch that are set here."""

TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>[0-5]\d):(?P<seconds>[0-5]\d)")


class SlurmConfig(BaseModel):
    """What a task asks of the cluster; `conf/hydra/launcher/slurm.yaml` says each."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: PositiveInt | str = 60
    mem_gb: Annotated[float, Gt(0)] | None = None
    cpus_per_task: PositiveInt = 1
    gpus_per_task: NonNegativeInt = 0
    python: str | None = None
    setup: list[str] = []
    srun_args: list[str] = []
    array_parallelism: PositiveInt = 256
    signal_delay: PositiveInt = 120
    sbatch: dict[str, str | int | float | bool] = {}

    @property
    def seconds(self) -> int:
        """The time limit. **Raises** `SettingError` where it is no time."""
        if isinstance(self.time, int):
            return 60 * self.time
        if self.time.isdecimal():
            return 60 * int(self.time)
        found = TIME.fullmatch(self.time)
        if not found:
            raise SettingError("time", self.time, "it must be minutes, HOURS:MM:SS or DAYS-HOURS:MM:SS")
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def check_slurm(settings: Settings) -> SlurmConfig:
    """The launcher's settings. **Raises** `SettingErrors`, each with a sentence, before anything is submitted."""
    try:
        config = check(SlurmConfig, settings)
        if config.signal_delay >= config.seconds:
            expected = f"it must be less than the time of a task, {config.seconds} s"
            raise SettingError("signal_delay", config.signal_delay, expected)
        for name in config.sbatch:
            option = name.replace("_", "-")
            if (
                option in OURS
                or name in SlurmConfig.model_fields
                or option in ("mem", "cpus-per-task", "gpus-per-task")
            ):
                expected = "it is set otherwise, by hydra.launcher's own settings or by the sweep itself"
                raise SettingError(f"sbatch.{name}", config.sbatch[name], expected)
    except SettingErrors as found:
        raise SettingErrors([error.within("hydra.launcher") for error in found.errors]) from None
    except SettingError as error:
        raise SettingErrors([error.within("hydra.launcher")]) from None
    if not shutil.which("sbatch"):
        raise SettingError("hydra/launcher", "slurm", "it needs SLURM, and this machine has no sbatch")
    return config


def launch_on_slurm(jobs: Sequence[Job], config: SlurmConfig, execution: ExecutionConfig, console: Console) -> None:
    """Submit what no earlier submission has in the queue and say so; with `sweep.wait`, stay until it is done.

    **Raises** `CannotGoOn` where SLURM takes no job, or the tasks have ended and left runs undone.
    """
    study = execution.study or NAMELESS
    folder = launch_folder(execution.runs, study)

    def say(sentence: str) -> None:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    known: set[str] = set()
    try:
        known = _in_queue(study)
    except SlurmUnavailable as error:
        say(f"{error}: what is queued already is queued again, and done once all the same")
    new = [left for job in jobs if (left := _without(job, known))]
    if already := _runs(jobs) - _runs(new):
        say(f"{_count(already, 'run')} queued already")
    for array in submit(new, config, folder, study, execution.sweep.runs_per_task):
        say(f"SLURM job {array.id}: {_count(array.tasks, 'task')} with {_count(array.runs, 'run')}")
    if not execution.sweep.wait:
        if execution.study:
            say(f"python -m sweeps status {study}{_elsewhere(execution.runs)} tells how they get on")
        return
    left = _wait(study, Path(execution.runs), [run for job in jobs for run in job.identities])
    if left:
        raise CannotGoOn(
            f"{_count(left, 'run')} left and no task of {study} in the queue; its tasks' logs are in {folder}"
        )


def _in_queue(study: str) -> set[str]:
    """The runs that some task will carry out, unless it is one that is ending. **Raises** `SlurmUnavailable`."""
    found: set[str] = set()
    for folder, tasks in groupby(queued(study), key=lambda task: task.launch):
        if launch := read_launch(folder):
            found.update(run for task in tasks if task.state != "COMPLETING" for run in launch.tasks[task.index])
    return found


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _elsewhere(runs: str) -> str:
    return "" if runs == "runs" else f" --runs {shlex.quote(runs)}"


def _runs(jobs: Iterable[Job]) -> int:
    return sum(len(job.runs) for job in jobs)


def _without(job: Job, known: set[str]) -> Job | None:
    """The job without some of its runs, None where none is left."""
    kept = [i for i, run in enumerate(job.identities) if run not in known]
    members = [job.settings["members"][i] for i in kept]
    return (
        job._replace(settings={**job.settings, "members": members}, runs=[job.runs[i] for i in kept]) if kept else None
    )


def _wait(study: str, folder: Path, runs: Sequence[str]) -> int:
    """Wait until every run has a record, or no task is in the queue; how many have none.

    Where squeue does not answer, nobody knows what is in the queue, and every record is waited for.
    """
    directories = [RunDirectory(folder, run) for run in runs]
    gone = False
    while left := sum(not directory.has_record() for directory in directories):
        if gone:
            return left
        time.sleep(PERIOD)
        with suppress(SlurmUnavailable):
            gone = not queued(study)
    return 0


class Array(NamedTuple):
    """A job array that SLURM has taken: its id, and how many tasks and runs it has."""

    id: str
    tasks: int
    runs: int


def submit(jobs: Sequence[Job], config: SlurmConfig, folder: Path, study: str, runs_per_task: int) -> Iterator[Array]:
    """Submit jobs as one array, or as several where the cluster takes none so large; each launch is filed in `folder`.

    **Raises** `CannotGoOn` where SLURM refuses; what was submitted before stays.
    """
    packed, most = pack(jobs, runs_per_task), max_array_size() if jobs else 1
    for tasks in (packed[i : i + most] for i in range(0, len(packed), most)):
        launch = write_launch(folder, [_task(task) for task in tasks])
        try:
            array = _sbatch(launch.folder, len(tasks), config, study)
        except FailedJobError as error:
            shutil.rmtree(launch.folder)
            raise CannotGoOn(f"sbatch: {str(error).strip()}") from None
        yield Array(array, len(tasks), sum(map(len, launch.tasks)))


def _task(jobs: Sequence[Job]) -> tuple[Sequence[str], Sequence[Settings]]:
    """What a launch says of a task; it may run in another folder."""
    settings = [{**job.settings, "runs": str(Path(job.settings["runs"]).absolute())} for job in jobs]
    return [run for job in jobs for run in job.identities], settings


def pack(jobs: Sequence[Job], runs_per_task: int) -> list[list[Job]]:
    """Jobs in their order, as many to a task as make `runs_per_task` runs; a job is never parted."""
    tasks: list[list[Job]] = []
    room = 0
    for job in jobs:
        if len(job.runs) > room or not tasks:
            tasks.append([])
            room = runs_per_task
        tasks[-1].append(job)
        room -= len(job.runs)
    return tasks


def max_array_size() -> int:
    """How many tasks the cluster takes in one array; SLURM's own default where it does not say."""
    try:
        found = re.search(r"MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"))
    except SlurmUnavailable:
        found = None
    return int(found[1]) if found else 1001


def _sbatch(folder: Path, tasks: int, config: SlurmConfig, study: str) -> str:
    given = {
        name: getattr(config, name)
        for name in ("partition", "account", "qos", "constraint", "cpus_per_task", "setup", "array_parallelism")
    }
    executor = SlurmExecutor(folder, python=config.python)
    executor.update_parameters(
        **{name: value for name, value in given.items() if value is not None},
        **({"mem": f"{round(config.mem_gb * 1024)}MB"} if config.mem_gb else {}),
        **({"gpus_per_task": config.gpus_per_task} if config.gpus_per_task else {}),
        job_name=job_name(study),
        time=config.time,
        signal_delay_s=config.signal_delay,
        comment=str(folder),
        stderr_to_stdout=True,
        # From SLURM 22.05 on, srun no longer takes this from sbatch.
        srun_args=[f"--cpus-per-task={config.cpus_per_task}", *config.srun_args],
        additional_parameters={"requeue": True, **config.sbatch},
    )
    executor.parameters["map_count"] = tasks
    source = os.environ.get("SLURM_CONF")
    with clean_env():  # of an allocation in which this may run, whose options sbatch would take for its own
        if source:  # no option, but where the cluster is to be found
            os.environ["SLURM_CONF"] = source
        return executor._submit_command(f"{executor.python} -m sweeps.slurm_task {shlex.quote(str(folder))}").job_id
