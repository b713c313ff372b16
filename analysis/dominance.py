"""Dominance: which family has the better quality to offer at the same cost, where, and at how many seeds."""

from collections.abc import Callable, Mapping

import numpy as np
from pandas import DataFrame

from analysis.quantities import Better, space


def dominance(
    runs: DataFrame,
    cost: str = "state.bytes",
    quality: str = "accuracy",
    *,
    by: str = "family",
    share: float = 0.9,
    better: Mapping[str, Better] | None = None,
) -> DataFrame:
    """The ranges of cost in which one group dominates another at a `share` of the seeds or more.

    `runs` are those of `at_best_learning_rate`: one row a point and `seed`. At a budget, a group offers the best
    quality that one of its points has for at most so much; it dominates another at a seed where it offers strictly
    more. A pair is compared over the seeds at which both have the most of their points, since with some of them
    missing a group would offer less, and only at budgets for which both have a point at each of them: who offers
    nothing yet is not dominated.

    **Columns:** `winner`, `loser`; `low`, `high`: the range of budgets, in the units of `cost`, the worse end not
    included and infinite where the largest cost measured still dominates; `share`, the least share of seeds in it;
    `gap`, the least mean over seeds of the quality ahead; `seeds`, how many were compared.

    **Raises** `ValueError` for columns that the runs lack and a share outside 0..1.
    """
    axes = space(runs, cost, quality, better)
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}, but it must be above 0, up to 1")
    known = runs.dropna(subset=[*axes.columns, "seed", by])
    known = known.assign(**dict(zip(axes.columns, axes.oriented(known).T, strict=True)))
    best = known.pivot_table(index=cost, columns=[by, "seed"], values=quality, aggfunc="min").cummin().ffill()
    budgets = best.index.to_numpy(float)
    sizes = known.groupby([by, "seed"], as_index=False).size()
    whole = sizes.loc[sizes["size"] == sizes.groupby(by)["size"].transform("max")]
    # [budgets, seeds], more is better
    offers = {name: -DataFrame(best[name])[of_group["seed"].tolist()] for name, of_group in whole.groupby(by)}
    rows = []
    for winner, ours in offers.items():
        for loser, theirs in offers.items():
            common = ours.columns.intersection(theirs.columns)
            if winner == loser or common.empty:
                continue
            ahead = np.asarray(ours[common], float) - np.asarray(theirs[common], float)
            won = (ahead > 0).mean(1)
            holds = (won >= share - 1e-12) & ~np.isnan(ahead).any(1)
            edges = np.flatnonzero(np.diff(np.concatenate([[False], holds, [False]]).astype(int)))
            for first, end in edges.reshape(-1, 2):
                ends = axes.signs[0] * np.append(budgets, np.inf)[[first, end]]
                rows.append(
                    {
                        "winner": winner,
                        "loser": loser,
                        "low": ends.min(),
                        "high": ends.max(),
                        "share": won[first:end].min(),
                        "gap": ahead[first:end].mean(1).min(),
                        "seeds": len(common),
                    }
                )
    return DataFrame(rows, columns=["winner", "loser", "low", "high", "share", "gap", "seeds"])


def sentences(table: DataFrame, readable: Callable[[float], str] = "{:g}".format) -> list[str]:
    """A sentence for each row of `dominance`; `readable` writes costs, as `analysis.style.readable_bytes` does."""
    return [
        f"{row['winner']} dominates {row['loser']} at {100 * row['share']:.0f}% of {row['seeds']} "
        f"{'seed' if row['seeds'] == 1 else 'seeds'} {_between(row['low'], row['high'], readable)}"
        for row in table.to_dict("records")
    ]


def _between(low: float, high: float, readable: Callable[[float], str]) -> str:
    if np.isinf(high):
        return f"from {readable(low)} on"
    return f"up to {readable(high)}" if np.isinf(low) else f"between {readable(low)} and {readable(high)}"
