"""Recall accuracy against the bytes of state a sequence costs, the Pareto frontier, and the bound of docs/theory.md.

Based (Arora et al. 2024), Figure 2. A marker an architecture point, at the learning rate that validation chose; error
bars span seeds. Where states were also kept in other dtypes (`decode.state_dtype`), a second frontier is that of all.
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame, Series

from analysis.architectures import as_trained, points, synthetic
from analysis.figures import NotEnough
from analysis.geometry import Floats
from analysis.pareto import frontier
from analysis.scatter import FRONTIER, looks, scatter, stacked, state_title, steps
from analysis.style import FAINT_INK, accuracy_axis, bytes_axis, print_style, readable_bytes
from analysis.theory import study_bound

_BOUND: dict[str, Any] = {"color": FAINT_INK, "linewidth": 0.9, "linestyle": (0, (1, 1))}
_ANY_DTYPE: dict[str, Any] = {"color": FAINT_INK, "linewidth": 0.9, "linestyle": (0, (4, 2))}

_FAR = 10
"""A bound that is so many times below the least state is said, not drawn: the axis is for the points."""


def table(runs: DataFrame) -> DataFrame:
    """The points of `analysis.points` as they were trained, without their settings, and which are on the frontier."""
    trained = as_trained(runs)
    found = points(trained if len(trained) else synthetic(runs))
    if found[["accuracy", "state.bytes"]].dropna().empty:
        raise NotEnough("no run has completed with both an accuracy and a measured state")
    if len(found["state.length"].dropna().unique()) > 1:
        raise NotEnough("states measured at several lengths do not compare")
    columns = found.loc[:, "family":"state.dtype"]
    return columns.assign(frontier=frontier(found))


def _bound(runs: DataFrame, most: float) -> Floats:
    """The accuracy that no recurrent model exceeds, by bytes of state up to `most`, [m, 2]; none but for MQAR.

    From where it is right half of the time, up to where it reaches 1 and says no more.
    """
    try:
        sizes = np.unique(np.geomspace(1, most, 2000).round())
        bound = study_bound(as_trained(runs), 8 * sizes)
    except (KeyError, ValueError):
        return np.empty((0, 2))
    half, whole = (min(int(np.searchsorted(bound, level)), len(sizes) - 1) for level in (0.5, 1))
    shown = (sizes >= sizes[half]) & (sizes <= sizes[whole])
    return np.column_stack([sizes, bound])[shown]


@print_style()
def draw(runs: DataFrame) -> Figure:
    """Draw the figure; where labels would collide, the frontier's are kept."""
    drawn = table(runs).dropna(subset=["accuracy", "state.bytes"])
    drawn = drawn.sort_values(["frontier", "accuracy"], ascending=False)
    bound = _bound(runs, drawn["state.bytes"].to_numpy(float).max())
    others = [Line2D([], [], **FRONTIER, label="Pareto frontier")]
    everything = points(synthetic(runs))
    narrower = len(everything["state.dtype"].unique()) > len(drawn["state.dtype"].unique())
    if narrower:
        others.append(Line2D([], [], **_ANY_DTYPE, label="state in any dtype"))
    if len(bound) and bound[-1, 0] * _FAR < drawn["state.bytes"].min():
        said = f"recurrent bound: 1 from {readable_bytes(bound[-1, 0])} on"
        others, bound = [*others, Line2D([], [], linestyle="", label=said)], bound[:0]
    elif len(bound):
        others.append(Line2D([], [], **_BOUND, label="recurrent bound"))
    figure, (axes,) = stacked(looks(drawn), others=others)
    axes.set_xlabel(state_title(drawn))
    axes.set_ylabel("recall accuracy")
    accuracy_axis(axes)
    best = everything.loc[frontier(everything)] if narrower else everything.head(0)
    bytes_axis(axes, Series([*drawn["state.bytes"], *best["state.bytes"], *bound[:1, 0]]))
    if len(bound):
        axes.plot(*bound.T, **_BOUND, zorder=1.4)
    corners = steps(drawn.loc[drawn["frontier"]], axes.get_xlim()[1])
    axes.plot(*corners.T, **FRONTIER, zorder=1.5)
    lines = [corners, *([bound] if len(bound) else [])]
    if narrower:
        lines.append(steps(best, axes.get_xlim()[1]))
        axes.plot(*lines[-1].T, **_ANY_DTYPE, zorder=1.4)
    scatter(axes, drawn, "state.bytes", "accuracy", lines=lines)
    return figure
