"""Lines over a logarithmic axis in stacked panels, each named at its right end."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from pandas import DataFrame

from analysis.figures import NotEnough
from analysis.labels import typeset
from analysis.placement import label_ends, line_height, text_size
from analysis.scatter import legend
from analysis.small_multiples import shades
from analysis.style import COLUMN_WIDTH, axes_at, bytes_scale, column_figure, count_axis, look

_LEFT, _BOTTOM, _TITLE, _GAP, _BESIDE, _LEAST_HEIGHT, _LEAST_WIDTH, _APART = 0.56, 0.4, 0.2, 0.1, 0.12, 1.3, 0.5, 0.06
_BYTES = 0.14
"""Inches: margins, room above a panel with a title or none, beside labels; a panel; between ticks; names in bytes."""

DASHES = (0, (3, 2))


def ended_lines(
    panels: Mapping[str, DataFrame],
    x: str,
    y: str,
    titles: tuple[str, str],
    *,
    dashed: str | None = None,
    handles: Sequence[Line2D] = (),
    in_bytes: bool = False,
) -> Figure:
    """A figure with a panel for each title and rows: columns `family`, `label` and `line`, `x` and `y`, in order of x.

    A line is coloured by its family and named by family and label at its end; `dashed` is another column drawn beside
    `y`. `titles` are those of the axes, x and y. Both are logarithmic, y in bytes where so.

    **Raises** `NotEnough` where names leave no room.
    """
    figure = column_figure(1)
    names = {title: [_name(line) for line in _lines(rows)] for title, rows in panels.items()}
    side = _BESIDE + max(text_size(figure, name)[0] for each in names.values() for name in each)
    heights = [max(_LEAST_HEIGHT, (len(each) + 1) * line_height() / 72) for each in names.values()]
    above = [_TITLE if title else _GAP for title in panels]
    figure.set_figheight(_BOTTOM + sum(heights) + sum(above))
    if handles:
        legend(figure, handles)
    left = _LEFT + (_BYTES if in_bytes else 0)
    bottom, width = _BOTTOM, COLUMN_WIDTH - left - side
    if width < _LEAST_WIDTH:
        raise NotEnough("the names of its lines leave no room beside them; those of one study are shorter")
    ticks = sorted({value for rows in panels.values() for value in rows[x]})
    widest = max(text_size(figure, f"{value:.0f}")[0] for value in ticks)
    for number, (title, rows) in enumerate(reversed(list(panels.items()))):
        axes = axes_at(figure, left, bottom, width, heights[-1 - number])
        bottom += heights[-1 - number] + above[-1 - number]
        axes.set_title(title)
        axes.set_ylabel(titles[1])
        axes.set_xscale("log", base=2)
        axes.set_xlim(ticks[0] / 1.15, ticks[-1] * 1.15)
        axes.xaxis.set_major_locator(FixedLocator(_named(ticks, width, widest + _APART)))
        axes.xaxis.set_minor_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(labelbottom=number == 0)
        if number == 0:
            axes.set_xlabel(titles[0])
        shown = [y, dashed] if dashed else [y]
        scale = bytes_scale if in_bytes else count_axis
        scale(axes.yaxis, rows.loc[:, shown].stack())
        colors: list[str] = []
        for family, of_family in rows.groupby("family"):
            lines = _lines(of_family)
            style = look(str(family))
            for line, shade in zip(lines, shades(style.color, len(lines)), strict=True):
                colors.append(shade)
                if dashed:
                    axes.plot(line[x], line[dashed], color=shade, linewidth=0.7, linestyle=DASHES)
                marker = {"marker": style.marker, "markersize": 0.6 * style.size, "markeredgewidth": 0}
                axes.plot(line[x], line[y], color=shade, **marker)
        ends = np.array([line[[x, y]].iloc[-1] for line in _lines(rows)], float)
        label_ends(axes, ends, names[title], colors)
    return figure


def _lines(rows: DataFrame) -> list[DataFrame]:
    """The rows of each line, by family."""
    return [line for _, line in rows.groupby(["family", "line"])]


def _name(line: DataFrame) -> str:
    family, label = line[["family", "label"]].iloc[0]
    return f"{look(family).name} {typeset(label)}".strip()


def _named(values: list[float], width: float, least: float) -> list[float]:
    """The powers of two among values on a logarithmic axis of `width` inches, as many as are `least` apart."""
    low, high = math.log2(values[0]), math.log2(values[-1])
    every = math.ceil(least * max(high - low, 1) / width)
    powers = [2.0**p for p in range(math.ceil(low), math.floor(high) + 1) if p % every == math.floor(high) % every]
    return powers or values[-1:]
