"""Draws without replacement, row by row."""

import torch
from torch import Tensor

ROWS = 4096
"""Rows made at a time, so that the working set of a generator stays in cache."""


def distinct(n: int, count: int, low: int, high: int, random: torch.Generator) -> Tensor:
    """Uniform draws from low .. high - 1 without replacement within a row: [n, count], on the device of `random`.

    As many draws as there are numbers are a permutation. Otherwise repeated values are drawn again until none is left:
    no step prefers a value to another and any ordered choice can be relabelled into any other, so all are equally
    likely.
    """
    pool = high - low
    if 2 * count > pool:
        return low + torch.rand(n, pool, generator=random, device=random.device).argsort(dim=1)[:, :count]
    drawn = torch.randint(low, high, (n, count), generator=random, device=random.device)
    rows = torch.arange(n, device=random.device)
    while len(rows):
        ordered, order = drawn[rows].sort(dim=1, stable=True)
        repeated = torch.zeros_like(ordered, dtype=torch.bool)
        repeated.scatter_(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])
        again = repeated.any(dim=1)
        rows, repeated = rows[again], repeated[again]
        fresh = torch.randint(low, high, repeated.shape, generator=random, device=random.device)
        drawn[rows] = torch.where(repeated, fresh, drawn[rows])
    return drawn
