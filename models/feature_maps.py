"""Feature maps phi of linear attention: phi(q) . phi(k) stands in for exp(q . k / sqrt(K)).

Each is a module from [..., K] to [..., F]. `positive` says that phi(q) . phi(k) >= 0 for all q and k, so that outputs
can be normalised by the running sum of similarities; the others go without that denominator.
"""

import math
from collections import Counter
from collections.abc import Callable
from itertools import combinations_with_replacement

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.settings import SettingError


class FeatureMap(nn.Module):
    """A map that acts on each feature alone, with F = K."""

    positive = True

    def __init__(self, feature_dim: int):
        super().__init__()
        self.feature_dim = self.expanded_dim = feature_dim

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def similarity(self, q: Tensor, k: Tensor) -> Tensor:
        """phi(q_i) . phi(k_j) for all pairs: [..., N, K], [..., M, K] -> [..., N, M]."""
        return self(q) @ self(k).transpose(-1, -2)


class EluPlusOne(FeatureMap):
    """elu(x) + 1. Source: Katharopoulos et al. 2020, arXiv 2006.16236, equation 7."""

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x) + 1


class Relu(FeatureMap):
    """max(x, 0). Source: Kasai et al. 2021, arXiv 2103.13076."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class Square(FeatureMap):
    """x^2, feature by feature. Source: the ablation of Arora et al. 2024, arXiv 2402.18668, Figure 3."""

    def forward(self, x: Tensor) -> Tensor:
        return x.square()


class Identity(FeatureMap):
    """x itself: linear attention as a fast-weight memory (Schlag et al. 2021, arXiv 2102.11174)."""

    positive = False

    def forward(self, x: Tensor) -> Tensor:
        return x


class Taylor(FeatureMap):
    """The Taylor series of exp at 0: phi(q) . phi(k) = sum over d <= order of s^d / d!, with s = q . k / sqrt(K).

    Of the K^d products of degree d only the distinct monomials are kept, each weighted by the root of how often it
    occurs: F = 1 + K + K(K+1)/2 at order 2, which is 153 rather than 273 at K = 16.
    Source: Zhang et al. 2024, arXiv 2402.04347; Arora et al. 2024, arXiv 2402.18668, section 4.1.
    """

    def __init__(self, feature_dim: int, order: int = 2):
        super().__init__(feature_dim)
        self.order = order
        # 1 + s + s^2 / 2 = ((1 + s)^2 + 1) / 2 > 0; series cut at an odd order change sign.
        self.positive = order % 2 == 0
        self.expanded_dim = sum(math.comb(feature_dim + d - 1, d) for d in range(order + 1))
        for degree in range(2, order + 1):
            monomials = list(combinations_with_replacement(range(feature_dim), degree))
            orderings = [
                math.factorial(degree) / math.prod(map(math.factorial, Counter(m).values())) for m in monomials
            ]
            weight = torch.tensor(orderings, dtype=torch.float64) / (
                math.factorial(degree) * feature_dim ** (degree / 2)
            )
            self.register_buffer(f"index_{degree}", torch.tensor(monomials).T.contiguous(), persistent=False)
            self.register_buffer(f"scale_{degree}", weight.sqrt(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        features = [torch.ones_like(x[..., :1]), x * self.feature_dim**-0.25]
        for degree in range(2, self.order + 1):
            index, scale = self.get_buffer(f"index_{degree}"), self.get_buffer(f"scale_{degree}")
            product = x[..., index[0]]
            for i in index[1:]:
                product = product * x[..., i]
            features.append(product * scale.to(x.dtype))
        return torch.cat(features, dim=-1)

    def similarity(self, q: Tensor, k: Tensor) -> Tensor:
        s = q @ k.transpose(-1, -2) * self.feature_dim**-0.5
        total = 1 + s / self.order
        for degree in range(self.order - 1, 0, -1):  # Horner: 1 + s (1 + s/2 (1 + s/3 ...))
            total = 1 + s * total / degree
        return total


FEATURE_MAPS: dict[str, Callable[[int], FeatureMap]] = {
    "taylor": Taylor,
    "taylor1": lambda feature_dim: Taylor(feature_dim, order=1),
    "taylor3": lambda feature_dim: Taylor(feature_dim, order=3),
    "elu": EluPlusOne,
    "relu": Relu,
    "identity": Identity,
    "square": Square,
}
"""Name in a configuration -> constructor from feature_dim."""


def build_feature_map(name: str, feature_dim: int) -> FeatureMap:
    """The feature map called `name` for heads of `feature_dim`. **Raises** `SettingError` where there is none."""
    if name not in FEATURE_MAPS:
        raise SettingError("feature_map", name, f"it must be one of {', '.join(FEATURE_MAPS)}")
    return FEATURE_MAPS[name](feature_dim)
