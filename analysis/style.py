"""The print style that all figures share: one column of a two-column paper.

One colour and marker for each family, everywhere and always. Six colours are those of Okabe and Ito (2008); the
others were sought so that no two of the fifteen come near each other for readers without red or green cones either
(`tests/analysis/test_style.py` says how near). The marker says it again, in grayscale too.
"""

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from pandas import Series

COLUMN_WIDTH = 3.4
"""Inches."""

INK, FAINT_INK, BACKGROUND_INK = "#222222", "#666666", "#DDDDDD"

_PRINT: dict[Any, Any] = {
    # STIX ships with matplotlib, so that a figure is the same on every machine.
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 7.5,
    "axes.labelsize": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlepad": 3,
    "axes.titlelocation": "left",
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "figure.labelsize": 8.5,
    "legend.fontsize": 8,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.minor.size": 1.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ECECEC",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.0,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.handletextpad": 0.4,
    "legend.columnspacing": 1.2,
    "legend.borderaxespad": 0.3,
    "legend.borderpad": 0.0,
    "figure.dpi": 300,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType, which publishers accept and readers can search
}

Marker = str | tuple[int, int, int]


class Look(NamedTuple):
    """How a family is called and drawn."""

    name: str
    color: str
    marker: Marker

    @property
    def size(self) -> float:
        """Printer's points; a star fills less of its circle."""
        return 7.0 if self.marker == "*" or isinstance(self.marker, tuple) else 4.8


_LOOKS = {
    "attention": Look("attention", "#000000", "*"),
    "sliding_window": Look("sliding window", "#56B4E9", "s"),
    "linear_attention": Look("linear attention", "#E69F00", "^"),
    "based": Look("Based", "#D55E00", "o"),
    "short_conv": Look("short convolution", "#B52110", (4, 1, 0)),
    "long_conv": Look("long convolution", "#621B0E", (4, 1, 45)),
    "hyena": Look("Hyena", "#009E73", "D"),
    "h3": Look("H3", "#0D15EC", "d"),
    "mamba": Look("Mamba", "#0072B2", "v"),
    "mamba2": Look("Mamba-2", "#17109E", "P"),
    "retnet": Look("RetNet", "#78DAF4", "X"),
    "gla": Look("GLA", "#571859", "p"),
    "deltanet": Look("DeltaNet", "#3ECC95", "<"),
    "gated_deltanet": Look("Gated DeltaNet", "#386663", ">"),
    "rwkv7": Look("RWKV-7", "#6585F8", "h"),
}
_OTHER_COLORS = ["#CC6677", "#0072B2", "#117733", "#AA4499", "#661100", "#6699CC", "#999933"]
_OTHER_MARKERS: list[Marker] = ["8", (3, 1, 0), (6, 1, 0), (8, 1, 0), (5, 1, 180)]


def look(family: str) -> Look:
    """The look of a family; one that has none of its own gets, by its name, always the same."""
    if family in _LOOKS:
        return _LOOKS[family]
    number = zlib.crc32(family.encode())
    color = _OTHER_COLORS[number % len(_OTHER_COLORS)]
    marker = _OTHER_MARKERS[number // len(_OTHER_COLORS) % len(_OTHER_MARKERS)]
    return Look(family.replace("_", " "), color, marker)


@contextmanager
def print_style() -> Iterator[None]:
    """Give print style to what is drawn within; also the decorator of a figure's `draw`."""
    with mpl.rc_context(_PRINT):
        yield


def column_figure(height: float) -> Figure:
    """An empty figure of one column's width and `height` inches, in which text can be measured."""
    figure = Figure(figsize=(COLUMN_WIDTH, height))
    FigureCanvasAgg(figure)
    return figure


def axes_at(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """New axes whose frame is at a position in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the suffix; equal figures give equal files."""
    undated = {".pdf": {"CreationDate": None}, ".png": {"Software": None}}
    with print_style():
        figure.savefig(path, metadata=undated.get(path.suffix))


def bytes_axis(axes: Axes, counts: Series) -> None:
    """Make x logarithmic around these byte counts; labels take their room on the right."""
    bytes_scale(axes.xaxis, counts, room=1.375)


def bytes_scale(axis: Axis, counts: Series, *, room: float = 1.0) -> None:
    """Make an axis logarithmic around byte counts, with readable ticks at powers of two; `room` as in `count_axis`."""
    low, high = counts.min() / 1.6, counts.max() * 1.6
    _logarithmic(axis, 2, low, high * room)
    powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    every = math.ceil(len(powers) / 5)
    axis.set_major_locator(FixedLocator([2.0**p for p in powers if p % every == 0]))
    axis.set_minor_locator(FixedLocator([2.0**p for p in powers if p % every]))
    axis.set_major_formatter(FuncFormatter(lambda count, _: readable_bytes(count)))
    axis.set_minor_formatter(NullFormatter())


def count_axis(axis: Axis, counts: Series, *, room: float = 1.0) -> None:
    """Make an axis logarithmic around counts, with ticks as in 20k.

    `room`, a factor, is for labels beyond the largest.
    """
    low, high = float(counts.min()), float(counts.max())
    margin = 1.15 * (high / low) ** 0.04
    _logarithmic(axis, 10, low / margin, high * margin * room)
    axis.set_major_locator(FixedLocator(_counts(low / margin, high * margin * room)))
    axis.set_minor_locator(LogLocator(subs=range(1, 10)))
    axis.set_major_formatter(EngFormatter(sep="", places=None))
    axis.set_minor_formatter(NullFormatter())


def _counts(low: float, high: float) -> list[float]:
    """Round numbers in a range: three at the least, of as few digits as that takes."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), range(1, 10)):
        found = [step * 10.0**power for power in powers for step in steps]
        found = [value for value in found if low <= value <= high]
        if len(found) >= 3:
            return found
    return [value for value in MaxNLocator(3).tick_values(low, high) if low <= value <= high]


def _logarithmic(axis: Axis, base: int, low: float, high: float) -> None:
    axes = axis.axes
    if axis is axes.xaxis:
        axes.set_xscale("log", base=base)
        axes.set_xlim(low, high)
    else:
        axes.set_yscale("log", base=base)
        axes.set_ylim(low, high)


def accuracy_axis(axes: Axes, most: float = 1.0) -> None:
    """Make y go from 0 to 1, or to 0.5 or 0.2 where that holds `most`, with room for markers."""
    top, step = next((top, step) for top, step in ((0.2, 0.1), (0.5, 0.1), (1.0, 0.2)) if top >= most)
    axes.set_ylim(-0.02 * top, 1.05 * top)
    axes.set_yticks([tick * step for tick in range(round(top / step) + 1)])


def readable_bytes(count: float) -> str:
    """A count of bytes in binary units, as in 4 KiB."""
    power = min(int(math.log2(count)) // 10, 4) if count >= 1 else 0
    return f"{count / 1024**power:g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
