"""Hypervolume: one number for a whole frontier, and how far seeds move it."""

from collections.abc import Mapping

import moocore
import numpy as np
from pandas import DataFrame

from analysis.bootstrap import Seeds, groups
from analysis.geometry import Floats
from analysis.quantities import Better, Names, Space, is_log, space

Box = Mapping[str, tuple[float, float]]


def hypervolume(
    runs: DataFrame,
    box: Box,
    cost: Names = "state.bytes",
    quality: Names = "accuracy",
    *,
    by: str | None = None,
    better: Mapping[str, Better] | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> DataFrame:
    """The share of a box that a frontier dominates, 0..1, with a bootstrap interval over seeds.

    `runs` are those of `at_best_learning_rate`: one row a `point` and seed. `box` gives for every column the
    reference, which is worst, and the ideal: `{"state.bytes": (2**20, 2**12), "accuracy": (0, 1)}`. Axes of bytes,
    bits, seconds and tokens per second are log2, others linear. What is worse than the reference counts nothing,
    what is better than the ideal as the ideal. Over state and accuracy it is the mean of the best accuracy to be had
    for at most so many bytes, over bytes drawn log-uniformly from the box.

    **Columns:** `by`, if given; `hypervolume` of the points' means; `hypervolume_low`, `hypervolume_high`: the
    central `level` of `resamples` draws of seeds, NaN where no point has two; `points`; `seeds`, the fewest of a
    point.

    **Raises** `ValueError` for columns that the runs lack and for a box that is none.
    """
    axes = space(runs, cost, quality, better)
    reference, ideal = _corners(axes, box)

    def share(means: Floats) -> float:
        scaled = (_scaled(axes, means) - ideal) / (reference - ideal)
        return float(moocore.hypervolume(scaled.clip(0, 1), ref=1.0)) if len(scaled) else 0.0

    rows = []
    for name, of_group in groups(runs, by):
        seeds = Seeds.of(of_group, axes.columns)
        low, high, _ = seeds.interval(share, level=level, resamples=resamples, seed=seed)
        value = share(seeds.means())
        found = {"hypervolume": value, "hypervolume_low": low, "hypervolume_high": high}
        rows.append({**name, **found, "points": len(seeds.counts), "seeds": seeds.least})
    return DataFrame(rows)


def _corners(axes: Space, box: Box) -> tuple[Floats, Floats]:
    if missing := set(axes.columns) - set(box):
        raise ValueError(f"the box has no reference and ideal for {', '.join(sorted(missing))}")
    corners = _scaled(axes, np.array([box[name] for name in axes.columns], float).T)
    for name, way, worst, best in zip(axes.columns, axes.better, *corners, strict=True):
        if not (np.isfinite(worst) and np.isfinite(best) and worst > best):
            expected = f"(reference, ideal), finite, with {way} at the ideal" + (", above 0" if is_log(name) else "")
            raise ValueError(f"the box of {name!r} is {tuple(box[name])}, but it must be {expected}")
    return corners[0], corners[1]


def _scaled(axes: Space, values: Floats) -> Floats:
    """Values [n, axes] in their own units, on the scale of each axis, less being better."""
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = [np.log2(v) if is_log(name) else v for name, v in zip(axes.columns, values.T, strict=True)]
    return np.column_stack(columns) * axes.signs
