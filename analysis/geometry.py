"""Boxes and segments in the plane: which of many meet which.

Boxes are [n, 4]: left, bottom, right, top. Segments are [n, 2, 2]: start and end, x and y.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Truths = NDArray[np.bool_]


def overlap(boxes: Floats, others: Floats) -> Truths:
    """Which of `boxes` [n, 4] overlap which of `others` [m, 4]: [n, m]."""
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    return np.all((low < others[:, 2:]) & (high > others[:, :2]), axis=-1)


def through(segments: Floats, boxes: Floats) -> Truths:
    """Which `segments` [n, 2, 2] pass through which `boxes` [m, 4]: [n, m].

    By slabs: a segment is in a box where it is between both pairs of sides at once.
    """
    start = segments[:, None, 0]
    way = segments[:, None, 1] - start
    with np.errstate(divide="ignore", invalid="ignore"):
        one, other = (boxes[:, :2] - start) / way, (boxes[:, 2:] - start) / way
    enter = np.fmin(one, other).max(-1).clip(min=0)
    leave = np.fmax(one, other).min(-1).clip(max=1)
    return enter <= leave


def cross(segments: Floats) -> Truths:
    """Which `segments` [n, 2, 2] cross each other: [n, n]."""
    start, end = segments[:, 0], segments[:, 1]
    way = (end - start)[:, None]

    def side(point: Floats) -> Floats:
        to = point - start[:, None]
        return np.sign(way[..., 0] * to[..., 1] - way[..., 1] * to[..., 0])

    parted = side(start) != side(end)
    return parted & parted.T


def isotonic(values: Floats) -> Floats:
    """The nearest sequence, in squares, that never falls: pool adjacent violators."""
    pools: list[list[float]] = []
    for value in values:
        pools.append([value])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    return np.array([np.mean(pool) for pool in pools for _ in pool])
