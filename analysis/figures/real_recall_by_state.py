"""Recall from real documents against state: SWDE, FDA, SQuAD completion and one's own, a panel a task.

Based (Arora et al. 2024, arXiv 2402.18668), table 1, with state on the axis. A marker a model; error bars span seeds
and the 95% interval that so many questions leave.
"""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from pandas import DataFrame, Series

from analysis.architectures import DOCUMENTS, points
from analysis.figures import NotEnough
from analysis.scatter import looks, scatter, stacked, state_title
from analysis.style import accuracy_axis, bytes_axis, print_style

_INTERVAL = ["accuracy_low", "accuracy_high"]
_TITLES = {"swde": "SWDE", "fda": "FDA", "squad_completion": "SQuAD completion", "extraction": "own documents"}


def table(runs: DataFrame) -> DataFrame:
    """One row a task and point: `task`, the columns of `analysis.points` without settings, and `accuracy_low`, `_high`.

    These are the ends of 95% intervals, means over seeds; NaN where records have none.

    One's own documents are a task for each file, `extraction: NAME`, where there are several.

    An evaluation of a trained run takes part in the choice of that run's learning rate, by the validation accuracy of
    the training where its record is at hand.
    """
    if "task.name" not in runs or not set(runs["task.name"]) & {*DOCUMENTS}:
        raise NotEnough("no run is an evaluation on documents")
    evaluated = _validated(runs).drop(columns="model.run", errors="ignore")
    scored = evaluated.reindex(columns=[*evaluated, *({"accuracy", *_INTERVAL} - {*evaluated})])
    scored = scored.loc[scored["status"] == "completed"].dropna(subset=["accuracy", "state.bytes"])
    if scored.empty:
        raise NotEnough("no evaluation on documents has completed with both an accuracy and a measured state")
    if len(set(scored["state.length"])) > 1:
        raise NotEnough("states measured at several lengths do not compare")
    scored["asked"] = _asked(scored)
    by_task = {str(task): points(rows.drop(columns="asked")) for task, rows in scored.groupby("asked")}
    each = [
        found.loc[:, "family":"state.dtype"].join(found[_INTERVAL]).assign(task=task) for task, found in by_task.items()
    ]
    found = pd.concat(each, ignore_index=True)
    return found.loc[:, ["task", *found.columns.drop("task")]]


def _asked(scored: DataFrame) -> Series:
    tasks = Series(scored["task.name"])
    own = tasks == "extraction"
    if "task.path" not in scored or scored.loc[own, "task.path"].nunique() < 2:
        return tasks
    files = [f"extraction: {Path(str(path)).stem}" for path in scored["task.path"]]
    return tasks.where(~own, Series(files, index=scored.index))


def _validated(runs: DataFrame) -> DataFrame:
    evaluated: DataFrame = runs.loc[runs["task.name"].isin(DOCUMENTS)].copy()
    if "model.run" not in runs or "validation_accuracy" not in runs:
        return evaluated
    trained = dict(zip(runs["identity"], runs["validation_accuracy"], strict=True))
    evaluated["validation_accuracy"] = evaluated["model.run"].map(trained.get).astype(float)
    return evaluated


def _title(task: str) -> str:
    name, colon, file = task.partition(":")
    return _TITLES.get(name, name) + colon + file


@print_style()
def draw(runs: DataFrame) -> Figure:
    """Draw the figure; where labels would collide, those of the best are kept."""
    drawn = table(runs).sort_values("accuracy", ascending=False)
    order = [*_TITLES, *drawn["task"]]
    drawn["accuracy_min"] = drawn[["accuracy_min", "accuracy_low"]].min(axis=1)
    drawn["accuracy_max"] = drawn[["accuracy_max", "accuracy_high"]].max(axis=1)
    tasks = sorted(drawn["task"].unique(), key=lambda task: (order.index(task.split(":")[0]), task))
    figure, panels = stacked(looks(drawn), [_title(str(task)) for task in tasks])
    for axes, task in zip(panels, tasks, strict=True):
        asked = drawn.loc[drawn["task"] == task]
        bytes_axis(axes, drawn.loc[:, "state.bytes"])
        accuracy_axis(axes, asked["accuracy_max"].max())
        axes.set_ylabel("accuracy")
        scatter(axes, asked, "state.bytes", "accuracy")
    panels[-1].set_xlabel(state_title(drawn))
    return figure
