"""The features of the second-order Taylor map, phi(q) . phi(k) = 1 + s + s^2 / 2 with s = q . k / sqrt(K).

Only the distinct products are kept, 1, the x_i and the x_i x_j with i <= j, each weighted by the root of how
often it occurs: F = 1 + K + K (K + 1) / 2, which is 153 rather than 273 at K = 16.
Source: Arora et al. 2024, arXiv 2402.18668, section 4.1.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor


class Features(NamedTuple):
    """phi(x)_f = weight_f x_left[f] x_right[f], where an index of K stands for the number 1."""

    left: Tensor  # [F], int64
    right: Tensor  # [F], int64
    weight: Tensor  # [F], float64

    def __call__(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., F]."""
        x = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
        return x[..., self.left.to(x.device)] * x[..., self.right.to(x.device)] * self.weight.to(x)


def feature_count(K: int) -> int:
    """F."""
    return 1 + K + K * (K + 1) // 2


@cache
def features(K: int, device: torch.device | str = "cpu") -> Features:
    """The features of K inputs: 1, then each input, then the products of two, the first ever the earlier."""
    cpu = torch.device("cpu")  # whatever the default device is when they are first asked for
    pairs = torch.triu_indices(K, K, device=cpu)
    one = torch.tensor([K], device=cpu)
    first = torch.arange(K, device=cpu), one.expand(K)
    left, right = (torch.cat([one, t, p]) for t, p in zip(first, pairs, strict=True))
    # (q . k)^2 / 2K holds a square once and any other product twice.
    quadratic = torch.where(pairs[0] == pairs[1], 1 / (2 * K), 1 / K).double().sqrt()
    linear = torch.full((K,), K**-0.25, dtype=torch.float64, device=cpu)
    weight = torch.cat([torch.ones_like(linear[:1]), linear, quadratic])
    return Features(left.to(device), right.to(device), weight.to(device))
