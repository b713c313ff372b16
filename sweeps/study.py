"""A study: its points all checked before any runs, those of one shape grouped, what has a record left alone."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from rich.console import Console

from models.settings import SettingError, SettingErrors
from recallbench.any_run import AnyRun, Settings, flat
from recallbench.claim import holder, server_time, take
from recallbench.execution import ExecutionConfig
from recallbench.interrupt import deadline
from recallbench.progress import watch
from recallbench.record import RunDirectory, write_study
from recallbench.runs import execution_of, resolve
from sweeps.launches import launch_folder, write_command

Point = Sequence[str]
"""The overrides that make one point of a study."""


class Checked(NamedTuple):
    """A point of a study that can be run."""

    point: Point
    settings: Settings
    run: AnyRun


class Job(NamedTuple):
    """Runs that are carried out together."""

    overrides: list[str]
    settings: Settings  # what the overrides come to: with `members` filled, all that a worker needs
    runs: list[AnyRun]

    @property
    def identities(self) -> list[str]:
        return [run.identity for run in self.runs]


@runtime_checkable
class JobLauncher(Protocol):
    """Who carries out jobs, here or elsewhere."""

    submits: bool
    """Whether `launch_jobs` returns once the jobs are in a queue, while they wait or run; `sweep.wait` aside."""

    def check(self, runs: Sequence[AnyRun], execution: ExecutionConfig) -> None:
        """**Raises** `SettingError` or `SettingErrors` for what cannot be, before anything is written."""
        ...

    def launch_jobs(self, jobs: Sequence[Job], execution: ExecutionConfig, console: Console) -> None:
        """Carry out jobs. **Raises** `Stopped` at a signal, everything saved; at the end of its time it returns."""
        ...


def run_study(
    points: Sequence[Point],
    compose: Callable[[Point], Settings],
    launcher: JobLauncher,
    console: Console,
    module: str = "recallbench",
    command: Sequence[str] = (),
) -> None:
    """Check every point, file the study's manifest, and launch a job for each group of runs without a record.

    **Arguments:** `compose`: from a point to its settings; `module`, `command`: `python -m MODULE COMMAND` asks
    for all this.
    **Raises** `SettingErrors` with a sentence for each thing that is wrong at any point, before anything runs.
    """
    found = check_points(points, compose)
    execution = execution_of(found[0].settings)
    launcher.check([run for _, _, run in found], execution)
    directories = {point: RunDirectory(execution.runs, run.identity) for point, _, run in found}
    waiting = directories if execution.rerun else _without_record(directories, execution.runs)
    _check_weights([run for point, _, run in found if point in waiting], execution.runs)
    if execution.study is not None:
        identities = [run.identity for _, _, run in found]
        write_study(execution.runs, execution.study, identities)
        write_command(launch_folder(execution.runs, execution.study), module, command, identities)
    if execution.rerun:
        _set_aside(directories.values())
        waiting = _without_record(directories, execution.runs)
    title = execution.study or "sweep"
    console.print(
        f"{title}: {_count(len(found), 'run')}, {len(found) - len(waiting)} done, {len(waiting)} to go", soft_wrap=True
    )
    if not waiting:
        return
    shared = set.intersection(*(set(point) for point in directories))
    labels = {_label(c, shared) or title: waiting[c.point] for c in found if c.point in waiting}
    jobs = group([checked for checked in found if checked.point in waiting])
    queued = launcher.submits and not execution.sweep.wait
    try:
        with nullcontext() if queued else watch(labels, console, title):
            launcher.launch_jobs(jobs, execution, console)
    finally:
        if not queued:
            console.print(f"{title}: {tally(directories.values(), execution)}", soft_wrap=True)


def _label(checked: Checked, shared: Set[str]) -> str:
    """The overrides that set a point apart; of one that refers to other settings, what it comes to."""
    settled = flat(checked.settings)
    apart = [override.partition("=") for override in checked.point if override not in shared]
    return " ".join(f"{key}={settled.get(key, value) if '${' in value else value}" for key, _, value in apart)


def check_points(points: Sequence[Point], compose: Callable[[Point], Settings]) -> list[Checked]:
    """The settings and the run of each point; of points that make the same run, the first alone."""
    errors: list[SettingError] = []
    found: dict[str, Checked] = {}
    for point in points:
        try:
            settings = compose(point)
            run = resolve(settings)
            found.setdefault(run.identity, Checked(tuple(point), settings, run))
        except SettingErrors as several:
            errors += several.errors
        except SettingError as error:
            errors.append(error)
    if errors:
        raise SettingErrors(errors)
    return list(found.values())


def group(found: Iterable[Checked]) -> list[Job]:
    """A job for each group of runs that are carried out together: the first one's settings, and all as members.

    What a rerun replaces has been set aside by then, so that no job, of whatever process, is to do so again.
    """
    groups: dict[str, list[Checked]] = {}
    for checked in found:
        groups.setdefault(checked.run.group, []).append(checked)
    jobs = []
    for together in groups.values():
        members = [run.member for _, _, run in together]
        written = ",".join(f"{{{','.join(f'{k}:{_written(v)}' for k, v in member.items())}}}" for member in members)
        point, settings, _ = together[0]
        overrides = [*point, f"members=[{written}]", *(["rerun=false"] if settings["rerun"] else [])]
        job = {**settings, "members": members, "rerun": False}
        jobs.append(Job(overrides, job, [run for _, _, run in together]))
    return jobs


def tally(directories: Iterable[RunDirectory], execution: ExecutionConfig) -> str:
    """How the runs of a study stand, in words."""
    now, left = server_time(Path(execution.runs)), 0
    counts: Counter[str] = Counter()
    for directory in directories:
        if directory.has_record():
            counts["done"] += 1
            counts["failed"] += directory.record()["status"] == "failed"
        else:
            left += 1
            counts["held"] += holder(directory.path, now) is not None
    parts = [f"{_count(counts['done'], 'run')} done" + (f" ({counts['failed']} failed)" if counts["failed"] else "")]
    if left:
        held = f" ({counts['held']} of them held by another process)" if counts["held"] else ""
        parts.append(f"{left} left{held}")
    over = deadline(execution.sweep.time_budget)
    if left and over is not None and time.monotonic() >= over:
        parts.append("the time budget is over, the same command goes on from here")
    return ", ".join(parts)


def _without_record(directories: Mapping[Point, RunDirectory], runs: str) -> dict[Point, RunDirectory]:
    """What is to do; one look at the folder spares most of many looks."""
    there = set(os.listdir(runs)) if os.path.isdir(runs) else set()
    return {p: d for p, d in directories.items() if d.identity not in there or not d.has_record()}


def _check_weights(runs: Iterable[AnyRun], folder: str) -> None:
    errors: list[SettingError] = []
    for run in runs:
        try:
            run.check_weights(folder)
        except SettingError as error:
            errors.append(error)
    if errors:
        raise SettingErrors(errors)


def _set_aside(directories: Iterable[RunDirectory]) -> None:
    """Make room for a rerun of what has a record, unless another process is at it."""
    for directory in directories:
        if directory.has_record() and (claim := take(directory.path)):
            try:
                if directory.has_record():
                    directory.set_aside()
            finally:
                claim.release()
                claim.forget_earlier()


def _written(value: float | str | None) -> str:
    """In Hydra's syntax."""
    if isinstance(value, str):
        return "'" + value.replace("'", r"\'") + "'"
    return "null" if value is None else repr(value)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
