"""Architecture points in one panel or several: a marker each, error bars, labels clear of both."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame

from analysis.geometry import Floats
from analysis.labels import typeset
from analysis.placement import label_points
from analysis.style import COLUMN_WIDTH, FAINT_INK, Look, axes_at, column_figure, look

_LEFT, _RIGHT, _BOTTOM, _HEIGHT, _GAP, _TITLE = 0.42, 0.08, 0.4, 2.2, 0.1, 0.26
"""Margins, height of a panel, gap below the legend and room for a title above a panel, in inches."""

FRONTIER: dict[str, Any] = {"color": FAINT_INK, "linewidth": 0.9}


def stacked(
    looks: Iterable[Look], titles: Sequence[str] = ("",), others: Sequence[Line2D] = ()
) -> tuple[Figure, list[Axes]]:
    """A figure with a legend of the looks, and of other lines, above a panel for each title; the panels share x."""
    height = _HEIGHT if len(titles) == 1 else 0.75 * _HEIGHT
    each = height + (_TITLE if any(titles) else 0)
    figure = column_figure(_BOTTOM + len(titles) * each)
    legend(figure, [*(Line2D([], [], **marker(one), label=one.name) for one in looks), *others])
    panels: list[Axes] = []
    for i, title in enumerate(titles):
        bottom = _BOTTOM + (len(titles) - 1 - i) * each
        axes = axes_at(figure, _LEFT, bottom, COLUMN_WIDTH - _LEFT - _RIGHT, height)
        axes.set_title(title)
        axes.tick_params(labelbottom=i == len(titles) - 1)
        panels.append(axes)
    return figure, panels


def scatter(axes: Axes, drawn: DataFrame, x: str, y: str, *, lines: Sequence[Floats] = ()) -> None:
    """Draw and label points, the most important first: where labels would collide, the last are left out.

    `drawn` has the columns `family` and `label`, `x` and `y`, and `<y>_min` and `<y>_max`, the ends of its error bar.
    Labels keep clear of `lines` [m, 2] too. The limits of the axes must be final.
    """
    for family, rows in drawn.groupby("family"):
        spread = rows[rows[f"{y}_max"] > rows[f"{y}_min"]]
        axes.vlines(spread[x], spread[f"{y}_min"], spread[f"{y}_max"], color=look(str(family)).color, linewidth=0.9)
    markers(axes, drawn, x, y)
    label_points(
        axes,
        drawn[[x, y]].to_numpy(float),
        [typeset(label) for label in drawn["label"]],
        spans=drawn[[f"{y}_min", f"{y}_max"]].to_numpy(float),
        lines=lines,
    )


def markers(axes: Axes, drawn: DataFrame, x: str, y: str) -> None:
    """A marker a point; where they meet, those of the smaller family stay in sight."""
    for family, rows in sorted(drawn.groupby("family"), key=lambda group: -len(group[1])):
        axes.plot(rows[x], rows[y], **marker(look(str(family))))


def steps(best: DataFrame, right: float, cost: str = "state.bytes", quality: str = "accuracy") -> Floats:
    """The corners [m, 2] of the best quality to be had for at most so much, from points on the frontier."""
    best = best.sort_values(cost)
    costs, qualities = best[[cost, quality]].to_numpy(float).T
    return np.column_stack([np.append(costs.repeat(2)[1:], right), qualities.repeat(2)])


def looks(drawn: DataFrame) -> list[Look]:
    """The looks of the families, in alphabetical order."""
    return [look(family) for family in sorted(drawn["family"].unique())]


def marker(style: Look) -> dict[str, Any]:
    """How a look is drawn, as keywords of a line."""
    return {
        "linestyle": "",
        "marker": style.marker,
        "markersize": style.size,
        "color": style.color,
        "markeredgecolor": "white",
        "markeredgewidth": 0.4,
        "zorder": 3,
    }


def state_title(drawn: DataFrame) -> str:
    """What an axis of state says: the length and the dtype at which it was measured."""
    lengths, dtypes = (sorted(drawn[name].dropna().unique()) for name in ("state.length", "state.dtype"))
    # Old logs say neither. Where dtypes differ, labels tell them: the dtype of decoding is a setting of the point.
    said = [f"$N$ = {lengths[0]:.0f}"] if lengths else []
    said += dtypes if len(dtypes) < 2 else ["dtype by label"]
    return f"state per sequence ({', '.join(said)})" if said else "state per sequence"


def legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """A legend on top of the figure, which grows by as much, in as many columns as fit."""
    room = COLUMN_WIDTH - _LEFT - _RIGHT
    for columns in (3, 2, 1):
        corner = (_LEFT / COLUMN_WIDTH, 1)
        found = figure.legend(handles=handles, ncols=columns, loc="upper left", bbox_to_anchor=corner)
        extent = found.get_window_extent()
        if extent.width / figure.dpi <= room or columns == 1:
            break
        found.remove()
    figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi + _GAP)
