"""Recall accuracy against something, a small panel for each family.

A line an architecture point, darker with more state; bands span seeds; the lines of the other families stand behind in
gray.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter
from pandas import DataFrame

from analysis.architectures import as_trained, at_best_learning_rate
from analysis.figures import NotEnough
from analysis.labels import typeset
from analysis.placement import label_ends, line_height, text_size
from analysis.records import by_slice
from analysis.style import BACKGROUND_INK, COLUMN_WIDTH, Look, column_figure, look

# In inches: margins, the height of a title and the gap between panels; the least size of a panel;
# the room beside it that labels take on top of their text, and between the names of two ticks.
_LEFT, _BOTTOM, _TITLE, _GAP = 0.4, 0.4, 0.2, 0.14
_LEAST_WIDTH, _LEAST_HEIGHT = 0.6, 0.95
_BESIDE, _APART = 0.12, 0.06


def accuracy_by(runs: DataFrame, axis: str) -> DataFrame:
    """Accuracy at each value of a slice's axis, one row a point and value.

    **Columns:** `family`, `state.bytes`, `label`, `axis`; `accuracy` (mean over seeds, and over slices of equal value,
    0..1), `accuracy_min` and `accuracy_max` over seeds; `seeds`. **Raises** `NotEnough` where no slice has it.
    """
    slices = by_slice(at_best_learning_rate(as_trained(runs)))
    if axis not in slices or slices[[axis, "accuracy"]].dropna().empty:
        raise NotEnough(f"no completed run has slices by {axis}")
    return over_seeds(slices.dropna(subset=axis), axis)


def over_seeds(scored: DataFrame, axis: str) -> DataFrame:
    """The columns of `accuracy_by` from rows of `accuracy`, several a seed and value of the axis."""
    place = ["family", "state.bytes", "label", axis]
    by_seed = scored.groupby([*place, "seed"], dropna=False, as_index=False)
    by_place = by_seed.agg({"accuracy": "mean"}).groupby(place, dropna=False, as_index=False)
    return by_place.agg(
        accuracy=("accuracy", "mean"),
        accuracy_min=("accuracy", "min"),
        accuracy_max=("accuracy", "max"),
        seeds=("accuracy", "count"),
    )


def small_multiples(drawn: DataFrame, axis: str, title: str, names: Mapping[Any, str] | None = None) -> Figure:
    """A figure of the columns of `accuracy_by`, in print style.

    The axis is logarithmic, or has the values of `names` one beside another in their order, each so called.
    """
    ticks = dict(enumerate(names.values())) if names else {x: f"{x:g}" for x in sorted(drawn[axis].unique())}
    drawn = drawn.rename(columns={axis: "x"})
    if names:
        drawn = drawn.assign(x=drawn["x"].map(list(names).index)).sort_values("x")
    figure = column_figure(1)
    families = sorted(drawn["family"].unique())
    panels = _panels(figure, drawn, title, ticks, named=bool(names))
    for family, axes in zip(families, panels, strict=True):
        of_family = drawn["family"] == family
        for line in _lines(drawn.loc[~of_family]):
            axes.plot(line["x"], line["accuracy"], color=BACKGROUND_INK, linewidth=0.6)
        _draw_family(axes, look(family), _lines(drawn.loc[of_family]))
    return figure


def _panels(figure: Figure, drawn: DataFrame, title: str, ticks: dict[Any, str], named: bool) -> list[Axes]:
    """Empty axes for each family, in two columns if that leaves room beside the labels.

    A panel is at least so high that the labels of its lines go one below another.
    """
    labels = drawn.groupby("family")["label"].unique()
    side = _BESIDE + max(text_size(figure, typeset(text))[0] for text in drawn["label"].unique())
    across = COLUMN_WIDTH - _LEFT + _GAP
    columns = 2 if across / 2 - side - _GAP >= _LEAST_WIDTH else 1
    rows = math.ceil(len(labels) / columns)
    width = across / columns - side - _GAP
    if width < _LEAST_WIDTH / 2:
        raise NotEnough("the names of its points leave no room beside them; those of one study are shorter")
    height = max(_LEAST_HEIGHT, labels.map(len).max() * line_height() / 72)
    sizes = np.array([text_size(figure, name) for name in ticks.values()])
    under = _BOTTOM + (sizes[:, 0].max() - sizes[:, 1].max() if named else 0)
    total = under + rows * (height + _TITLE) + (rows - 1) * _GAP
    figure.set_figheight(total)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    figure.subplots_adjust(
        left=_LEFT / COLUMN_WIDTH,
        right=1 - side / COLUMN_WIDTH,
        bottom=under / total,
        top=1 - _TITLE / total,
        wspace=(side + _GAP) / width,
        hspace=(_TITLE + _GAP) / height,
    )
    panels = list(grid.flat)
    for axes in panels[len(labels) :]:
        axes.remove()
    panels = panels[: len(labels)]
    for axes, family in zip(panels, labels.index, strict=True):
        axes.set_title(look(family).name)
    for axes in panels[-columns:]:
        axes.tick_params(labelbottom=True)
    every = 1 if named else math.ceil(len(ticks) * (sizes[:, 0].max() + _APART) / width)
    _scales(panels[0], ticks, every, named)
    if named:
        for axes in panels[-columns:]:
            axes.tick_params(axis="x", labelrotation=90)
    middle = (_LEFT + COLUMN_WIDTH - side) / 2 / COLUMN_WIDTH
    figure.supxlabel(title, x=middle, y=0.02 / total, va="bottom")
    middle = (under + total - _TITLE) / 2 / total
    figure.supylabel("recall accuracy", x=0.02 / COLUMN_WIDTH, y=middle, ha="left")
    return panels


def _scales(axes: Axes, ticks: dict[Any, str], every: int, named: bool) -> None:
    """Scales that all panels share; every so manieth tick is named."""
    values = list(ticks)
    if named:
        axes.set_xlim(-0.3, len(values) - 0.7)
    else:
        axes.set_xscale("log", base=2)
        axes.set_xlim(values[0] / 1.15, values[-1] * 1.15)
    axes.xaxis.set_major_locator(FixedLocator(values[::every]))
    axes.xaxis.set_minor_locator(FixedLocator(values))
    axes.xaxis.set_major_formatter(lambda value, _: ticks[round(value)])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(0, 1.03)
    axes.set_yticks([0, 0.5, 1])


def _lines(drawn: DataFrame) -> list[DataFrame]:
    """The rows of each point, by increasing state."""
    return [line for _, line in drawn.groupby(["family", "state.bytes", "label"], dropna=False)]


def _draw_family(axes: Axes, style: Look, lines: list[DataFrame]) -> None:
    tones = shades(style.color, len(lines))
    for line, shade in zip(lines, tones, strict=True):
        x = line["x"]
        band = {"color": shade, "alpha": 0.2, "linewidth": 0}
        axes.fill_between(x, line["accuracy_min"], line["accuracy_max"], **band)
        marker = {"marker": style.marker, "markersize": 0.6 * style.size, "markeredgewidth": 0}
        axes.plot(x, line["accuracy"], color=shade, **marker)
    ends = np.array([line[["x", "accuracy"]].iloc[-1] for line in lines], float)
    label_ends(axes, ends, [typeset(line["label"].iloc[0]) for line in lines], tones)


def shades(color: str, count: int) -> list[str]:
    """From the color a third of the way to white, through the color itself, to a darker one."""
    middle = np.array(to_rgb(color))
    if count == 1:
        return [color]
    stops = np.array([0.35 + 0.65 * middle, middle, 0.6 * middle])
    at = np.linspace(0, 2, count)
    channels = [np.interp(at, [0, 1, 2], channel) for channel in stops.T]
    return [to_hex(shade) for shade in zip(*channels, strict=True)]
