"""Recall from real documents against state: SWDE, FDA, SQuAD completion and one's own, a panel a task.

Based (Arora et al. 2024, arXiv 2402.18668), table 1, with state on the axis. A marker a model; error bars span seeds.
"""

import pandas as pd
from matplotlib.figure import Figure
from pandas import DataFrame

from analysis.architectures import DOCUMENTS, points
from analysis.figures import NotEnough
from analysis.scatter import looks, scatter, stacked, state_title
from analysis.style import accuracy_axis, bytes_axis, print_style

_TITLES = {"swde": "SWDE", "fda": "FDA", "squad_completion": "SQuAD completion", "extraction": "own documents"}


def table(runs: DataFrame) -> DataFrame:
    """One row a task and point: `task`, and the columns of `analysis.points` without settings.

    An evaluation of a trained run takes part in the choice of that run's learning rate, by the validation accuracy of
    the training where its record is at hand.
    """
    if "task.name" not in runs or not runs["task.name"].isin(DOCUMENTS).any():
        raise NotEnough("no run is an evaluation on documents")
    evaluated = _validated(runs).drop(columns="model.run", errors="ignore")
    scored = evaluated.loc[
        (evaluated["status"] == "completed") & evaluated.get("accuracy", pd.Series(dtype=float)).notna()
    ]
    if scored["state.bytes"].isna().all():
        raise NotEnough("no evaluation on documents has completed with both an accuracy and a measured state")
    if scored["state.length"].nunique() > 1:
        raise NotEnough("states measured at several lengths do not compare")
    by_task = {str(task): points(rows) for task, rows in scored.groupby("task.name")}
    each = [found.loc[:, "family":"state.dtype"].assign(task=task) for task, found in by_task.items()]
    found = pd.concat(each, ignore_index=True)
    return found[["task", *found.columns.drop("task")]]


def _validated(runs: DataFrame) -> DataFrame:
    evaluated = runs.loc[runs["task.name"].isin(DOCUMENTS)]
    if "model.run" not in runs or "validation_accuracy" not in runs:
        return evaluated
    trained = runs.set_index("identity")["validation_accuracy"]
    return evaluated.assign(validation_accuracy=evaluated["model.run"].map(trained).astype(float))


@print_style()
def draw(runs: DataFrame) -> Figure:
    """Draw the figure; where labels would collide, those of the best are kept."""
    drawn = table(runs).sort_values("accuracy", ascending=False)
    tasks = sorted(drawn["task"].unique(), key=[*_TITLES, *drawn["task"]].index)
    figure, panels = stacked(looks(drawn), [_TITLES.get(task, task) for task in tasks])
    for axes, task in zip(panels, tasks, strict=True):
        bytes_axis(axes, drawn.loc[:, "state.bytes"])
        accuracy_axis(axes)
        axes.set_ylabel("accuracy")
        scatter(axes, drawn.loc[drawn["task"] == task], "state.bytes", "accuracy")
    panels[-1].set_xlabel(state_title(drawn))
    return figure
