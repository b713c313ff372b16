"""Bootstrap over seeds: what a study would have said of architectures had it drawn other seeds."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pandas import DataFrame

from analysis.geometry import Floats


class Seeds(NamedTuple):
    """The runs of P points, at most S seeds each, in A columns."""

    values: Floats  # [P, S, A]; rows from a point's count on are padding
    counts: NDArray[np.intp]  # [P]

    @classmethod
    def of(cls, runs: DataFrame, columns: list[str]) -> "Seeds":
        """Gather runs by their column `point`; runs with NaN in one of the columns are left out."""
        known = runs.dropna(subset=columns).sort_values("point", kind="stable")
        _, place, counts = np.unique(known["point"], return_inverse=True, return_counts=True)
        seed = np.arange(len(known)) - (np.cumsum(counts) - counts)[place]
        values = np.zeros((len(counts), counts.max(initial=0), len(columns)))
        values[place, seed] = known.loc[:, columns].to_numpy(float)
        return cls(values, counts)

    @property
    def least(self) -> int:
        """The fewest seeds of a point."""
        return int(self.counts.min()) if len(self.counts) else 0

    def means(self) -> Floats:
        """The mean of each point over its seeds, [P, A]."""
        return self.values.sum(1) / self.counts[:, None]

    def resampled(self, resamples: int, seed: int) -> Iterator[Floats]:
        """Means [P, A] over as many seeds drawn with replacement, for each point on its own."""
        random = np.random.default_rng(seed)
        point = np.arange(len(self.counts))[:, None]
        used = np.arange(self.values.shape[1]) < self.counts[:, None]
        for _ in range(resamples):
            drawn = (random.random(used.shape) * self.counts[:, None]).astype(int)
            yield (self.values[point, drawn] * used[..., None]).sum(1) / self.counts[:, None]

    def interval(
        self, statistic: Callable[[Floats], float], *, level: float, resamples: int, seed: int
    ) -> tuple[float, float, Floats]:
        """The central interval of a statistic of the means [P, A], and its resampled values [resamples].

        NaN where not one point has a second seed: nothing is known of the spread then. Ends are values that
        occurred, so that infinite ones have an order but no arithmetic.
        """
        if self.counts.max(initial=0) < 2:
            return np.nan, np.nan, np.empty(0)
        values = np.array([statistic(means) for means in self.resampled(resamples, seed)])
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
        return float(low), float(high), values


def groups(runs: DataFrame, by: str | None) -> Iterator[tuple[dict[str, Any], DataFrame]]:
    """Each group of runs with the columns that name it: none, and all runs, without `by`."""
    if by is None:
        yield {}, runs
    else:
        yield from (({by: name}, rows) for name, rows in runs.groupby(by))
