"""The Pareto frontier: what cannot be had better without paying more."""

import numpy as np
from pandas import DataFrame, Series


def frontier(points: DataFrame, cost: str = "state.bytes", quality: str = "accuracy") -> Series:
    """Which points no other point beats, as a boolean Series on the index of `points`.

    A point is beaten by one that costs no more and is no worse, and is better in one of the two;
    so equal points stand or fall together. A point whose cost or quality is NaN is never on the
    frontier. O(n log n).
    """
    known = points.loc[:, [cost, quality]].dropna()
    costs, qualities = known.to_numpy(float).T
    order = np.lexsort((-qualities, costs))
    _, first, group = np.unique(costs[order], return_index=True, return_inverse=True)
    best = qualities[order][first]
    cheaper = np.concatenate([[np.nan], np.maximum.accumulate(best)[:-1]]) if len(best) else best
    # NaN compares false: at the lowest cost there is nothing cheaper to be beaten by.
    on = (qualities[order] == best[group]) & ~(best <= cheaper)[group]
    return Series(on, index=known.index[order]).reindex(points.index, fill_value=False)
