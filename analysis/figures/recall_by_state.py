"""Recall accuracy against the bytes of state a sequence costs, and the Pareto frontier.

A marker an architecture point, at the learning rate that validation chose; error bars span seeds.
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame

from analysis.architectures import points
from analysis.figures import NotEnough
from analysis.geometry import Floats
from analysis.labels import typeset
from analysis.pareto import frontier
from analysis.placement import label_points
from analysis.style import (
    COLUMN_WIDTH,
    FAINT_INK,
    axes_at,
    bytes_axis,
    column_figure,
    look,
    print_style,
)

_LEFT, _RIGHT, _BOTTOM, _HEIGHT, _GAP = 0.42, 0.08, 0.4, 2.2, 0.1
"""Margins, height of the axes and gap below the legend, in inches."""

_LINE = {"color": FAINT_INK, "linewidth": 0.9}


def table(runs: DataFrame) -> DataFrame:
    """The points of `analysis.points`, without their settings, and which are on the frontier."""
    found = points(runs)
    if found[["accuracy", "state.bytes"]].dropna().empty:
        raise NotEnough("no run has completed with both an accuracy and a measured state")
    if len(found["state.length"].dropna().unique()) > 1:
        raise NotEnough("states measured at several lengths do not compare")
    columns = found.loc[:, "family":"state.dtype"]
    return columns.assign(frontier=frontier(found))


@print_style()
def draw(runs: DataFrame) -> Figure:
    """Draw the figure; where labels would collide, the frontier's are kept."""
    drawn = table(runs).dropna(subset=["accuracy", "state.bytes"])
    drawn = drawn.sort_values(["frontier", "accuracy"], ascending=False)
    figure = column_figure(_BOTTOM + _HEIGHT)
    _legend(figure, sorted(drawn["family"].unique()))
    axes = axes_at(figure, _LEFT, _BOTTOM, COLUMN_WIDTH - _LEFT - _RIGHT, _HEIGHT)
    # Where dtypes differ, labels tell them: the dtype of decoding is a setting of the point.
    dtype = drawn["state.dtype"].iloc[0] if len(drawn["state.dtype"].unique()) == 1 else "dtype by label"
    axes.set_xlabel(f"state per sequence ($N$ = {drawn['state.length'].iloc[0]:.0f}, {dtype})")
    axes.set_ylabel("recall accuracy")
    axes.set_ylim(-0.02, 1.05)
    axes.set_yticks(np.linspace(0, 1, 6))
    bytes_axis(axes, drawn.loc[:, "state.bytes"])

    corners = _steps(drawn.loc[drawn["frontier"]], axes.get_xlim()[1])
    axes.plot(*corners.T, **_LINE, zorder=1.5)
    # Where markers meet, those of the smaller family stay in sight.
    for family, rows in sorted(drawn.groupby("family"), key=lambda group: -len(group[1])):
        several = rows[rows["seeds"] > 1]
        low, high = several["accuracy_min"], several["accuracy_max"]
        axes.vlines(several["state.bytes"], low, high, color=look(str(family)).color, linewidth=0.9)
        axes.plot(rows["state.bytes"], rows["accuracy"], **_marker(str(family)))
    label_points(
        axes,
        drawn[["state.bytes", "accuracy"]].to_numpy(float),
        [typeset(label) for label in drawn["label"]],
        spans=drawn[["accuracy_min", "accuracy_max"]].to_numpy(float),
        line=corners,
    )
    return figure


def _steps(best: DataFrame, right: float) -> Floats:
    """The corners [m, 2] of the best accuracy to be had for at most so many bytes."""
    best = best.sort_values("state.bytes")
    costs, qualities = best[["state.bytes", "accuracy"]].to_numpy(float).T
    return np.column_stack([np.append(costs.repeat(2)[1:], right), qualities.repeat(2)])


def _marker(family: str) -> dict[str, Any]:
    style = look(family)
    return {
        "linestyle": "",
        "marker": style.marker,
        "markersize": style.size,
        "color": style.color,
        "markeredgecolor": "white",
        "markeredgewidth": 0.4,
        "zorder": 3,
    }


def _legend(figure: Figure, families: list[str]) -> None:
    """A legend on top of the figure, which grows by as much, in as many columns as fit."""
    handles = [Line2D([], [], **_marker(family), label=look(family).name) for family in families]
    handles.append(Line2D([], [], **_LINE, label="Pareto frontier"))
    room = COLUMN_WIDTH - _LEFT - _RIGHT
    for columns in (3, 2, 1):
        corner = (_LEFT / COLUMN_WIDTH, 1)
        legend = figure.legend(handles=handles, ncols=columns, loc="upper left", bbox_to_anchor=corner)
        extent = legend.get_window_extent()
        if extent.width / figure.dpi <= room or columns == 1:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi + _GAP)
