"""The Pareto frontier: what cannot be had better without paying more."""

from collections.abc import Mapping

import moocore
import numpy as np
from pandas import DataFrame, Series

from analysis.quantities import Better, Names, space


def frontier(
    points: DataFrame,
    cost: Names = "state.bytes",
    quality: Names = "accuracy",
    *,
    by: Names | None = None,
    better: Mapping[str, Better] | None = None,
) -> Series:
    """Which points no other point beats, as a boolean Series on the index of `points`.

    `cost` and `quality` name two or three columns together, such as `cost=["state.bytes", "cost.seconds"]`. With
    `by`, each group of those columns has a frontier of its own. Which way a column is better is known by its name
    (`analysis.quantities.space`), `better={"column": "less"}` overrides it.

    A point is beaten by one that is no worse in any column and better in one; so equal points stand or fall together.
    A point with NaN in one of the columns is never on the frontier. O(n log n).

    **Raises** `ValueError` for columns that the points lack.
    """
    axes = space(points, cost, quality, better)
    oriented = axes.oriented(points)
    known = ~np.isnan(oriented).any(1)
    on = np.zeros(len(points), bool)
    if known.any():
        # Ranks: dominance asks for the order alone, and they are finite where values are not.
        ranks = np.column_stack([np.unique(axis, return_inverse=True)[1] for axis in oriented[known].T]).astype(float)
        group = np.zeros(len(points)) if by is None else points.groupby(by, dropna=False).ngroup().to_numpy()
        on[known] = moocore.is_nondominated_within_sets(ranks, sets=group[known], keep_weakly=True)
    return Series(on, index=points.index)
