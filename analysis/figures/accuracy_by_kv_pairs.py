"""Recall accuracy against the number of kv pairs that a sequence holds.

A panel a family; a line an architecture point, at the learning rate that validation chose, darker
with more state; bands span seeds; the lines of the other families stand behind in gray.
"""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter
from pandas import DataFrame

from analysis.architectures import at_best_learning_rate
from analysis.figures import NotEnough
from analysis.labels import typeset
from analysis.placement import label_ends, line_height, text_size
from analysis.records import by_slice
from analysis.style import (
    BACKGROUND_INK,
    COLUMN_WIDTH,
    Look,
    column_figure,
    look,
    print_style,
)

# In inches: margins, the height of a title and the gap between panels; the least size of a panel;
# the room beside it that labels take on top of their text, and the room of a tick's name.
_LEFT, _BOTTOM, _TITLE, _GAP = 0.4, 0.4, 0.2, 0.14
_LEAST_WIDTH, _LEAST_HEIGHT = 0.6, 0.95
_BESIDE, _TICK = 0.12, 0.17


def table(runs: DataFrame) -> DataFrame:
    """One row a point and number of kv pairs.

    **Columns:** `family`, `state.bytes`, `label`, `num_kv_pairs`; `accuracy` (mean over seeds, and
    over slices of equally many kv pairs, 0..1), `accuracy_min` and `accuracy_max` over seeds;
    `seeds`.
    """
    slices = by_slice(at_best_learning_rate(runs))
    if "num_kv_pairs" not in slices:
        raise NotEnough("no completed run has slices by num_kv_pairs")
    place = ["family", "state.bytes", "label", "num_kv_pairs"]
    by_seed = slices.groupby([*place, "seed"], dropna=False, as_index=False)
    by_place = by_seed.agg({"accuracy": "mean"}).groupby(place, dropna=False, as_index=False)
    return by_place.agg(
        accuracy=("accuracy", "mean"),
        accuracy_min=("accuracy", "min"),
        accuracy_max=("accuracy", "max"),
        seeds=("accuracy", "count"),
    )


@print_style()
def draw(runs: DataFrame) -> Figure:
    """Draw the figure."""
    drawn = table(runs)
    figure = column_figure(1)
    families = list(drawn["family"].unique())
    for family, axes in zip(families, _panels(figure, drawn), strict=True):
        of_family = drawn["family"] == family
        for line in _lines(drawn.loc[~of_family]):
            axes.plot(line["num_kv_pairs"], line["accuracy"], color=BACKGROUND_INK, linewidth=0.6)
        _draw_family(axes, look(family), _lines(drawn.loc[of_family]))
    return figure


def _panels(figure: Figure, drawn: DataFrame) -> list[Axes]:
    """Empty axes for each family, in two columns if that leaves room beside the labels.

    A panel is at least so high that the labels of its lines go one below another.
    """
    labels = drawn.groupby("family")["label"].unique()
    side = _BESIDE + max(text_size(figure, typeset(text))[0] for text in drawn["label"].unique())
    across = COLUMN_WIDTH - _LEFT + _GAP
    columns = 2 if across / 2 - side - _GAP >= _LEAST_WIDTH else 1
    rows = math.ceil(len(labels) / columns)
    width = across / columns - side - _GAP
    height = max(_LEAST_HEIGHT, labels.map(len).max() * line_height() / 72)
    total = _BOTTOM + rows * (height + _TITLE) + (rows - 1) * _GAP
    figure.set_figheight(total)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    figure.subplots_adjust(
        left=_LEFT / COLUMN_WIDTH,
        right=1 - side / COLUMN_WIDTH,
        bottom=_BOTTOM / total,
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
    _scales(panels[0], sorted(drawn["num_kv_pairs"].unique()), width)
    middle = (_LEFT + COLUMN_WIDTH - side) / 2 / COLUMN_WIDTH
    figure.supxlabel("kv pairs per sequence", x=middle, y=0.02 / total, va="bottom")
    middle = (_BOTTOM + total - _TITLE) / 2 / total
    figure.supylabel("recall accuracy", x=0.02 / COLUMN_WIDTH, y=middle, ha="left")
    return panels


def _scales(axes: Axes, pairs: list[int], width: float) -> None:
    """Scales that all panels share; of the numbers of kv pairs as many are named as have room."""
    every = math.ceil(len(pairs) * _TICK / width)
    axes.set_xscale("log", base=2)
    axes.set_xlim(pairs[0] / 1.15, pairs[-1] * 1.15)
    axes.xaxis.set_major_locator(FixedLocator(pairs[::every]))
    axes.xaxis.set_minor_locator(FixedLocator(pairs))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(0, 1.03)
    axes.set_yticks([0, 0.5, 1])


def _lines(drawn: DataFrame) -> list[DataFrame]:
    """The rows of each point, by increasing state."""
    return [line for _, line in drawn.groupby(["family", "state.bytes", "label"], dropna=False)]


def _draw_family(axes: Axes, style: Look, lines: list[DataFrame]) -> None:
    shades = _shades(style.color, len(lines))
    for line, shade in zip(lines, shades, strict=True):
        pairs = line["num_kv_pairs"]
        band = {"color": shade, "alpha": 0.2, "linewidth": 0}
        axes.fill_between(pairs, line["accuracy_min"], line["accuracy_max"], **band)
        marker = {"marker": style.marker, "markersize": 0.6 * style.size, "markeredgewidth": 0}
        axes.plot(pairs, line["accuracy"], color=shade, **marker)
    ends = np.array([line[["num_kv_pairs", "accuracy"]].iloc[-1] for line in lines], float)
    label_ends(axes, ends, [typeset(line["label"].iloc[0]) for line in lines], shades)


def _shades(color: str, count: int) -> list[str]:
    """From the color a third of the way to white, through the color itself, to a darker one."""
    middle = np.array(to_rgb(color))
    if count == 1:
        return [color]
    stops = np.array([0.35 + 0.65 * middle, middle, 0.6 * middle])
    at = np.linspace(0, 2, count)
    channels = [np.interp(at, [0, 1, 2], channel) for channel in stops.T]
    return [to_hex(shade) for shade in zip(*channels, strict=True)]
