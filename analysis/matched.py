"""Matched quality: what it costs to be so good."""

from collections.abc import Mapping

import numpy as np
from pandas import DataFrame

from analysis.bootstrap import Seeds, groups
from analysis.geometry import Floats
from analysis.quantities import Better, is_log, space


def matched_quality(
    runs: DataFrame,
    target: float,
    cost: str = "state.bytes",
    quality: str = "accuracy",
    *,
    by: str | None = "family",
    better: Mapping[str, Better] | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> DataFrame:
    """The cost at which each group's frontier reaches a quality, with a bootstrap interval over seeds.

    `runs` are those of `at_best_learning_rate`, for one slice those of `by_slice` of them:

        sliced = by_slice(at_best_learning_rate(runs))
        matched_quality(sliced[sliced["num_kv_pairs"] == 64], 0.95)

    Between the last frontier point below the target and the first that reaches it the cost is read off a straight
    line, over log2 of a cost in bytes, bits, seconds or tokens per second. Nothing is extrapolated: where the
    cheapest point reaches the target its cost is an upper bound, where none does the cost is infinite.

    **Columns:** `by`, if given; the cost; its `_low` and `_high` ends, the central `level` of `resamples` draws of
    seeds, NaN where no point has two; its `_measured`: that of the cheapest point which reaches the target; `bound`:
    whether the cost is only an upper bound; `reached`: the share of resamples that reach the target, NaN as above;
    `points`; `seeds`, the fewest of a point.

    **Raises** `ValueError` for columns that the runs lack.
    """
    axes = space(runs, cost, quality, better)
    sign = axes.signs
    rows = []
    for name, of_group in groups(runs, by):
        seeds = Seeds.of(of_group, axes.columns)

        def needed(means: Floats) -> float:
            return _needed(means * sign, target * sign[1], is_log(cost))[0] * sign[0]

        low, high, values = seeds.interval(needed, level=level, resamples=resamples, seed=seed)
        value, measured, bound = _needed(seeds.means() * sign, target * sign[1], is_log(cost))
        found = {
            cost: value * sign[0],
            f"{cost}_low": low,
            f"{cost}_high": high,
            f"{cost}_measured": measured * sign[0],
        }
        reached = float(np.isfinite(values).mean()) if len(values) else np.nan
        rows.append(
            {**name, **found, "bound": bound, "reached": reached, "points": len(seeds.counts), "seeds": seeds.least}
        )
    return DataFrame(rows)


def _needed(points: Floats, target: float, log: bool) -> tuple[float, float, bool]:
    """The cost for the target, that of the cheapest point which reaches it, and whether that is the cheapest of all.

    `points` [n, 2] and `target` are turned so that less is better of both.
    """
    points = points[np.lexsort(points.T[::-1])]
    best = np.minimum.accumulate(points[:, 1]) if len(points) else points[:, 1]
    reaching = np.flatnonzero(best <= target)
    if not len(reaching):
        return np.inf, np.inf, False
    first = reaching[0]
    measured = float(points[first, 0])
    if first == 0:
        return measured, measured, True
    before = np.flatnonzero(best[:first] == best[first - 1])[0]
    ends, along = points[[before, first], 0], (best[before] - target) / (best[before] - best[first])
    if log:
        return float(np.sign(ends[0]) * np.abs(ends[0]) ** (1 - along) * np.abs(ends[1]) ** along), measured, False
    return float(ends[0] + along * (ends[1] - ends[0])), measured, False
