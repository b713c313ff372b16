"""Recall accuracy against what the training took: seconds where one device did it all, or else tokens read.

A marker an architecture point, at the learning rate that validation chose; error bars span seeds of the accuracy.
"""

from matplotlib.figure import Figure
from pandas import DataFrame

from analysis.architectures import as_trained, at_best_learning_rate, points
from analysis.figures import NotEnough
from analysis.scatter import looks, scatter, stacked
from analysis.style import accuracy_axis, count_axis, print_style


def table(runs: DataFrame) -> DataFrame:
    """The points of `analysis.points` without settings, and what a training took at the chosen rate, over seeds on average.

    **Columns:** besides those, `seconds` (of the process, divided by the members that it trained together), `tokens` and
    `device` (empty where there were several).
    """
    runs = as_trained(runs)
    found = points(runs).dropna(subset=["accuracy"])
    chosen = at_best_learning_rate(runs)
    if found.empty or "cost.tokens" not in chosen or chosen["cost.tokens"].isna().all():
        raise NotEnough("no run has completed with an accuracy and a cost")
    members = chosen["provenance.members"].fillna(1) if "provenance.members" in chosen else 1
    cost = chosen.assign(seconds=chosen["cost.seconds"] / members).groupby(["family", "label"], as_index=False)
    cost = cost.agg(seconds=("seconds", "mean"), tokens=("cost.tokens", "mean"))
    devices = chosen["provenance.device"].dropna().unique()
    found = found.loc[:, "family":"state.dtype"].merge(cost, on=["family", "label"])
    return found.assign(device=devices[0] if len(devices) == 1 else "")


@print_style()
def draw(runs: DataFrame) -> Figure:
    """Draw the figure; where labels would collide, those of the best are kept."""
    drawn = table(runs).sort_values("accuracy", ascending=False)
    cost = "seconds" if drawn["device"].iloc[0] else "tokens"
    figure, (axes,) = stacked(looks(drawn))
    axes.set_xlabel("seconds of training" if cost == "seconds" else "tokens of training")
    axes.set_ylabel("recall accuracy")
    accuracy_axis(axes)
    count_axis(axes.xaxis, drawn.loc[:, cost], room=1.15)
    scatter(axes, drawn, cost, "accuracy")
    return figure
