"""Labels for points and lines, where they cover neither data nor each other."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from analysis.geometry import Floats, Truths, cross, isotonic, overlap, through
from analysis.style import FAINT_INK

# In printer's points: a marker's radius, how far from it texts may be, the gap that they keep, and
# up to where they need no leader.
_MARKER = 2.7
_DISTANCES = np.array([4.2, 7.0, 10.0, 14.0, 19.0, 25.0])
_CLEAR = 1.3
_BESIDE = 4.5

# How long the pieces are, at the least, into which a sloping line is cut.
_PIECE = 2.0

# What a leader across a line costs, and two labels in conflict, as a length of leader.
_LINE_CROSSED = 14.0
_CONFLICT = 1e3

_DIRECTIONS, _BEST_PLACES, _STARTS, _PASSES = 24, 48, 24, 10


class _Places(NamedTuple):
    """Where labels may go: C places, each for one label, in pixels."""

    label: NDArray[np.intp]  # [C] whose place it is
    boxes: Floats  # [C, 4]
    leaders: Floats  # [C, 2, 2] from the marker's edge to the text
    costs: Floats  # [C]


class _Data(NamedTuple):
    """What labels keep clear of, in pixels."""

    frame: Floats  # [4]
    centers: Floats  # [n, 2]
    markers: Floats  # [n, 4] boxes, error bars included
    pieces: Floats  # [m, 4] boxes that cover the lines
    pixel: float  # a printer's point


def label_points(
    axes: Axes, points: Floats, texts: Sequence[str], *, spans: Floats, lines: Sequence[Floats] = ()
) -> None:
    """Write texts beside points, clear of markers, error bars, lines and each other.

    `points` [n, 2] come with the most important first: where there is no room for all texts, the
    last are left out; an empty text is no label. `spans` [n, 2] are the ends of the error bars and
    `lines` [m, 2] the corners of each line, all in data coordinates. The figure's size and the
    limits of the axes must be final.
    """
    data = _in_pixels(axes, points, spans, lines)
    found = [_places(data, i, text_size(axes.figure, text) * axes.figure.dpi) for i, text in enumerate(texts) if text]
    if not found:
        return
    places = _Places._make(map(np.concatenate, zip(*found, strict=True)))
    to_data = axes.transData.inverted().transform
    for place in _choose(places):
        box, leader = places.boxes[place], places.leaders[place]
        x, y = to_data((box[:2] + box[2:]) / 2)
        axes.text(x, y, texts[int(places.label[place])], ha="center", va="center")
        if np.linalg.norm(leader[1] - leader[0]) > (_BESIDE - _MARKER) * data.pixel:
            axes.plot(*to_data(leader).T, color=FAINT_INK, linewidth=0.4)


def label_ends(axes: Axes, ends: Floats, texts: Sequence[str], colors: Sequence[str]) -> None:
    """Write texts to the right of the axes for the ends of lines, in order and one below another.

    `ends` [n, 2] are in data coordinates; a leader in the line's colour joins an end and its text.
    The figure's size and the limits of the axes must be final.
    """
    pixel = axes.figure.dpi / 72
    frame = axes.get_window_extent()
    heights = axes.transData.transform(ends)[:, 1]
    order = np.argsort(heights, kind="stable")
    steps = line_height() * pixel * np.arange(len(order))
    level = isotonic(heights[order] - steps)
    level = level.clip(frame.y0, max(frame.y0, frame.y1 - steps[-1])) + steps
    to_data = axes.transData.inverted().transform
    for i, height in zip(map(int, order), level, strict=True):
        if not texts[i]:
            continue
        leader = np.array([ends[i], to_data((frame.x1 + 5 * pixel, height))])
        axes.plot(*leader.T, color=colors[i], linewidth=0.5, clip_on=False)
        x, y = to_data((frame.x1 + 6 * pixel, height))
        axes.text(x, y, texts[i], va="center")


def text_size(figure: Figure | SubFigure, text: str) -> Floats:
    """Width and height of a text, in inches."""
    probe = figure.text(0, 0, text)
    extent = probe.get_window_extent()
    probe.remove()
    return np.array(extent.size) / figure.dpi


def line_height() -> float:
    """Printer's points from one line of labels to the next."""
    return 1.2 * mpl.rcParams["font.size"]


def _in_pixels(axes: Axes, points: Floats, spans: Floats, lines: Sequence[Floats]) -> _Data:
    to_pixels = axes.transData.transform
    pixel = axes.figure.dpi / 72
    centers = to_pixels(points)
    low, high = (to_pixels(np.column_stack([points[:, 0], end])) for end in spans.T)
    radius = _MARKER * pixel
    markers = np.hstack([np.minimum(centers - radius, low), np.maximum(centers + radius, high)])
    pieces = np.vstack([np.empty((0, 4)), *(_pieces(to_pixels(line), _PIECE * pixel) for line in lines)])
    return _Data(np.array(axes.get_window_extent().extents), centers, markers, pieces, pixel)


def _pieces(corners: Floats, size: float) -> Floats:
    """Boxes [n, 4] that cover a line with corners [m, 2]; of what slopes, none is larger than `size` both ways."""
    least = np.abs(np.diff(corners, axis=0)).min(1)
    parts = np.ceil(least / size).clip(min=1).astype(int)
    at = np.concatenate([i + np.arange(n) / n for i, n in enumerate(parts)] + [[len(parts)]])
    dots = np.column_stack([np.interp(at, np.arange(len(corners)), values) for values in corners.T])
    ends = np.stack([dots[:-1], dots[1:]])
    return np.hstack([ends.min(0), ends.max(0)])


def _places(data: _Data, label: int, size: Floats) -> _Places:
    """The best places around a point for a text of `size` [2], cheapest first."""
    center = data.centers[label]
    angle = np.arange(_DIRECTIONS) * 2 * np.pi / _DIRECTIONS
    way = np.column_stack([np.cos(angle), np.sin(angle)])
    # The middle of a side faces the point in the four main directions, a corner in between.
    reach = np.clip(np.sqrt(2) * way, -1, 1) * size / 2
    middle = (center + _DISTANCES[:, None, None] * data.pixel * way + reach).reshape(-1, 2)
    boxes = np.hstack([middle - size / 2, middle + size / 2])
    clear = boxes + _CLEAR * data.pixel * np.array([-1, -1, 1, 1])
    end = np.clip(center, clear[:, :2], clear[:, 2:])
    length = np.linalg.norm(end - center, axis=1) / data.pixel
    leaders = np.stack([center + (end - center) * (_MARKER / length)[:, None], end], axis=1)
    within = (boxes[:, :2] >= data.frame[:2]) & (boxes[:, 2:] <= data.frame[2:])
    covered = overlap(clear, np.vstack([data.markers, data.pieces])).any(1)
    struck = through(leaders, np.delete(data.markers, label, axis=0)).any(1)
    crossed = through(leaders, data.pieces).sum(1)
    costs = length + _BESIDE * (length > _BESIDE) + _LINE_CROSSED * crossed
    free = np.flatnonzero(within.all(1) & ~covered & ~struck)
    best = free[np.argsort(costs[free], kind="stable")][:_BEST_PLACES]
    return _Places(np.full(len(best), label), clear[best], leaders[best], costs[best])


def _choose(places: _Places) -> list[int]:
    """At most one place a label, no two in conflict: the best of descents in random orders."""
    label, conflict = places.label, _conflicts(places)
    random = np.random.default_rng(0)
    descents = [_descend(places, conflict, random.permutation(np.unique(label))) for _ in range(_STARTS)]

    def energy(chosen: dict[int, int]) -> float:
        used = list(chosen.values())
        return places.costs[used].sum() + _CONFLICT * conflict[np.ix_(used, used)].sum() / 2

    kept: list[int] = []
    for _, place in sorted(min(descents, key=energy).items()):
        if not conflict[place, kept].any():
            kept.append(place)
    return kept


def _descend(places: _Places, conflict: Truths, order: NDArray[np.intp]) -> dict[int, int]:
    """For each label the cheapest place beside those of the others, until none moves."""
    chosen: dict[int, int] = {}
    for _ in range(_PASSES):
        before = dict(chosen)
        for label in order.tolist():
            chosen.pop(label, None)
            own = np.flatnonzero(places.label == label)
            conflicts = conflict[own][:, list(chosen.values())].sum(1)
            chosen[label] = int(own[(places.costs[own] + _CONFLICT * conflicts).argmin()])
        if chosen == before:
            break
    return chosen


def _conflicts(places: _Places) -> Truths:
    """Which places, of different labels, cannot both be used: [C, C]."""
    struck = through(places.leaders, places.boxes)
    either = overlap(places.boxes, places.boxes) | struck | struck.T | cross(places.leaders)
    return either & (places.label[:, None] != places.label)
