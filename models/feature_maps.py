"""Feature maps phi of linear attention: phi(q) . phi(k) stands in for exp(q . k / sqrt(K)).

Each is a module from [..., K] to [..., F]. `positive` says that phi(q) . phi(k) >= 0 for all q and k, so that outputs
can be normalised by the running sum of similarities; the others go without that denominator.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import combinations_with_replacement

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.settings import SettingError


class FeatureMap(nn.Module, ABC):
    """A map that acts on each feature alone, with F = K."""

    positive = True

    def __init__(self, feature_dim: int):
        super().__init__()
        self.feature_dim = self.expanded_dim = feature_dim

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...

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
            index, orderings = monomials(feature_dim, degree)
            divisor = math.factorial(degree) * feature_dim ** (degree / 2)
            self.register_buffer(f"index_{degree}", index, persistent=False)
            self.register_buffer(f"scale_{degree}", roots(n / divisor for n in orderings), persistent=False)

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


def monomials(feature_dim: int, degree: int) -> tuple[Tensor, list[float]]:
    """The distinct products of `degree` features: which features [degree, M], and how often each occurs in all [M]."""
    products = list(combinations_with_replacement(range(feature_dim), degree))
    orderings = [math.factorial(degree) / math.prod(map(math.factorial, Counter(m).values())) for m in products]
    return torch.tensor(products).T.contiguous(), orderings


def roots(weights: Iterable[float]) -> Tensor:
    """Square roots [M] of numbers, not of a tensor: torch computes on the device "meta" with its compiler imported.

    Each command that checks settings builds the model there, and would take two seconds more.
    """
    return torch.tensor([math.sqrt(weight) for weight in weights], dtype=torch.float64)


class Rebased(FeatureMap):
    """(x_q . x_k)^2 / K of normalised features with a learned scale and shift, x = layernorm(x) * gamma + beta.

    Unlike the Taylor series, which stays above 1/2, it reaches zero. Queries and keys share gamma and beta, as in the
    `RebasedFeatureMap` of flash-linear-attention; the paper gives each its own.
    Source: Aksenov et al. 2024, arXiv 2402.10644.
    """

    def __init__(self, feature_dim: int):
        super().__init__(feature_dim)
        self.gamma = nn.Parameter(torch.ones(feature_dim))
        self.beta = nn.Parameter(torch.zeros(feature_dim))
        index, orderings = monomials(feature_dim, 2)
        self.expanded_dim = index.shape[1]
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("scale", roots(n / feature_dim for n in orderings), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x, (i, j) = self._normalise(x), self.get_buffer("index")
        return x[..., i] * x[..., j] * self.get_buffer("scale").to(x.dtype)

    def similarity(self, q: Tensor, k: Tensor) -> Tensor:
        return (self._normalise(q) @ self._normalise(k).transpose(-1, -2)).square() / self.feature_dim

    def _normalise(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.feature_dim,), self.gamma, self.beta)


class _LearnedMap(nn.Linear):
    keeps_initialisation = True

    def reset_parameters(self) -> None:
        nn.init.eye_(self.weight)
        nn.init.zeros_(self.bias)


class Hedgehog(FeatureMap):
    """softmax([W x + b, -W x - b]): features that are as peaked as exp, learned, F = 2K; at the start W = I and b = 0.

    Queries and keys of all heads share W and b here; the paper gives each its own.
    Source: Zhang et al. 2024, arXiv 2402.04347.
    """

    def __init__(self, feature_dim: int):
        super().__init__(feature_dim)
        self.expanded_dim = 2 * feature_dim
        self.layer = _LearnedMap(feature_dim, feature_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return torch.cat([x, -x], dim=-1).softmax(-1)


class Performer(FeatureMap):
    """FAVOR+: exp(w_i . x - |x|^2 / 2) / sqrt(F), whose mean over normal w_i is exp(q . k / sqrt(K)), x = q / K^(1/4).

    The w_i are orthogonal within each block of K. They are one draw, the same in every layer, head, run and member of a
    sweep: what varies between seeds is training. The reference's shift by the sequence's largest exponent would not be
    causal, so those of long vectors (|q|^2 beyond some 40 sqrt(K)) fall below the epsilon of the denominator, and one
    of an x along w_i reaches exp(|w_i|^2 / 2), K / 2 on the mean: from K = 64 on, training can leave float32's range.
    Source: Choromanski et al. 2020, arXiv 2009.14794, section 2; F = 256 is its reference's default.
    """

    def __init__(self, feature_dim: int, num_features: int = 256, seed: int = 0):
        super().__init__(feature_dim)
        self.expanded_dim = num_features
        self.register_buffer("projection", orthogonal_normal(num_features, feature_dim, seed))

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        scaled = x.to(wide) * self.feature_dim**-0.25
        exponent = scaled @ self.get_buffer("projection").to(wide).T - scaled.square().sum(-1, keepdim=True) / 2
        return (exponent.exp() * self.expanded_dim**-0.5).to(x.dtype)


def orthogonal_normal(rows: int, columns: int, seed: int) -> Tensor:
    """[rows, columns], each row normal by itself, and orthogonal to the others of its block of `columns` rows."""
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (2, -(-rows // columns), columns, columns)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    Q, R = torch.linalg.qr(normal[0])
    Q = Q * R.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # the signs of a QR decomposition are anyone's choice
    w = (Q * normal[1].norm(dim=-1, keepdim=True)).flatten(0, 1)[:rows]
    return w.to(torch.get_default_device(), torch.get_default_dtype())


FEATURE_MAPS: dict[str, Callable[[int], FeatureMap]] = {
    "taylor": Taylor,
    "taylor1": lambda feature_dim: Taylor(feature_dim, order=1),
    "taylor3": lambda feature_dim: Taylor(feature_dim, order=3),
    "elu": EluPlusOne,
    "relu": Relu,
    "identity": Identity,
    "square": Square,
    "rebased": Rebased,
    "hedgehog": Hedgehog,
    "performer": Performer,
}
"""Name in a configuration -> constructor from feature_dim."""


def build_feature_map(name: str, feature_dim: int) -> FeatureMap:
    """The feature map called `name` for heads of `feature_dim`. **Raises** `SettingError` where there is none."""
    if name not in FEATURE_MAPS:
        raise SettingError("feature_map", name, f"it must be one of {', '.join(FEATURE_MAPS)}")
    return FEATURE_MAPS[name](feature_dim)
