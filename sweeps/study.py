"""A study: its points all checked before any runs, those of one shape grouped, what has a record left alone."""

from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from models.settings import SettingError, SettingErrors
from recallbench.config import Run, execution_of, plain, resolve
from recallbench.progress import watch
from recallbench.record import RunDirectory, write_study

Point = Sequence[str]
"""The overrides that make one point of a study."""


def run_study(
    points: Sequence[Point],
    compose: Callable[[Point], DictConfig],
    launch: Callable[[list[list[str]]], Any],
    console: Console,
) -> None:
    """Check every point, file the study's manifest, and launch a job for each group of runs without a record.

    **Arguments:** `compose`: from a point to its configuration; `launch`: runs jobs, a list of overrides each.
    **Raises** `SettingErrors` with a sentence for each thing that is wrong at any point, before anything runs.
    """
    settings, runs = check_points(points, compose)
    execution = execution_of(settings)
    if execution.study is not None:
        write_study(execution.runs, execution.study, [run.identity for run in runs.values()])
    directories = {point: RunDirectory(execution.runs, run) for point, run in runs.items()}
    waiting = {p: d for p, d in directories.items() if execution.rerun or not d.has_record()}
    title = execution.study or "sweep"
    console.print(f"{title}: {_count(len(runs), 'run')}, {len(runs) - len(waiting)} done, {len(waiting)} to go")
    if not waiting:
        return
    shared = set.intersection(*(set(point) for point in runs))
    labels = {" ".join(o for o in p if o not in shared) or title: d for p, d in waiting.items()}
    jobs = group({point: directory.run for point, directory in waiting.items()})
    with watch(labels, console, title):
        launch(jobs)


def check_points(
    points: Sequence[Point], compose: Callable[[Point], DictConfig]
) -> tuple[dict[str, Any], dict[Point, Run]]:
    """The settings of the last point, and the run of each; of points that make the same run, the first alone."""
    errors: list[SettingError] = []
    runs: dict[str, tuple[Point, Run]] = {}
    settings: dict[str, Any] = {}
    for point in points:
        try:
            settings = plain(compose(point))
            run = resolve(settings)
            runs.setdefault(run.identity, (tuple(point), run))
        except SettingErrors as found:
            errors += found.errors
        except SettingError as error:
            errors.append(error)
    if errors:
        raise SettingErrors(errors)
    return settings, dict(runs.values())


def group(runs: dict[Point, Run]) -> list[list[str]]:
    """A job for each group of runs that can train together: the first one's overrides, and all as members."""
    groups: dict[str, list[tuple[Point, Run]]] = {}
    for point, run in runs.items():
        groups.setdefault(run.group, []).append((point, run))
    jobs = []
    for together in groups.values():
        members = ",".join(
            f"{{learning_rate:{run.train.learning_rate!r},seed:{run.seed},state_dtype:{_or_null(run.decode.state_dtype)}}}"
            for _, run in together
        )
        jobs.append([*together[0][0], f"members=[{members}]"])
    return jobs


def _or_null(value: str | None) -> str:
    return "null" if value is None else value


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
