"""Empirical attainment: which costs and qualities so many per cent of the seeds reach.

Each seed's points make a frontier of their own; a place is attained by a seed if a point of that seed is at least as
good in every column (Grunert da Fonseca et al. 2001).
"""

import math
from collections.abc import Mapping, Sequence

import moocore
import numpy as np
import pandas as pd
from pandas import DataFrame

from analysis.bootstrap import groups
from analysis.quantities import Better, Names, space


def attainment(
    runs: DataFrame,
    cost: Names = "state.bytes",
    quality: Names = "accuracy",
    *,
    levels: Sequence[float] = (10, 50, 90),
    by: str | None = None,
    better: Mapping[str, Better] | None = None,
) -> DataFrame:
    """The corners of the attainment surfaces at `levels`, in per cent of the seeds.

    `runs` are those of `at_best_learning_rate`: one row a point and `seed`. A seed that lacks a point attains less:
    compare architectures over the same seeds. With n seeds the surface at p per cent is that of ceil(p n / 100).

    **Columns:** `by`, if given; `level`; `seeds`, how many there are; the columns of cost and quality, in their own
    units. The corners of a level are those of its staircase, by increasing cost.

    **Raises** `ValueError` for columns that the runs lack and for levels outside 0..100.
    """
    axes = space(runs, cost, quality, better)
    if not levels or not all(0 < level <= 100 for level in levels):
        raise ValueError(f"levels are {tuple(levels)}, but they must be per cents above 0, up to 100")
    order = [*([by] if by else []), "level", "seeds", *axes.columns]
    found = []
    for name, rows in groups(runs.dropna(subset=[*axes.columns, "seed"]).sort_values("seed"), by):
        which = np.unique(rows["seed"], return_inverse=True)[1]
        seeds = int(which.max(initial=-1)) + 1
        # So many seeds are asked for, and as a percentage that floating point cannot round up to one more.
        needed = {level: math.ceil(level * seeds / 100 - 1e-9) for level in levels if seeds}
        for level, k in needed.items():
            surface = moocore.eaf(axes.oriented(rows), which.astype(float), percentiles=[100 * (k - 0.5) / seeds])
            corners = np.unique(surface[:, :-1], axis=0) * axes.signs
            found.append(DataFrame(corners, columns=axes.columns).assign(**name, level=level, seeds=seeds)[order])
    return pd.concat(found, ignore_index=True) if found else DataFrame(columns=order)
