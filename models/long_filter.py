"""Filters of long convolutions: modules from a number of lags to the filter [lags, channels].

Each has a `reach`, how many inputs before the current one it sees, None for all of them.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.mixer import accumulation_dtype

FAST, SLOW, FLOOR = 0.3, 1.5, 1e-2
"""An implicit filter's envelope falls to FLOOR within between FAST and SLOW times its nominal length, by channel."""


class ExplicitFilter(nn.Module):
    """One free parameter a lag and channel, zero from lag `length` on."""

    def __init__(self, channels: int, length: int):
        super().__init__()
        self.reach = length - 1
        self.filter = nn.Parameter(torch.randn(channels, length) / math.sqrt(length))

    def forward(self, lags: int) -> Tensor:
        return self.filter[:, :lags].T


class Sin(nn.Module):
    """sin(w x) with a trainable frequency w a feature."""

    def __init__(self, width: int, frequency: float):
        super().__init__()
        self.freq = nn.Parameter(torch.full((1, width), float(frequency)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.freq.to(x.dtype) * x)


class _WideLinear(nn.Linear):
    """Computes in the dtype of its input, since neighbouring positions are the same number in bfloat16."""

    keeps_initialisation = True

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class ImplicitFilter(nn.Module):
    """An MLP of the position under a decaying envelope, plus a free value at lag 0, without end.

    h_t = mlp(t / L, cos and sin of 2 pi f t / L) exp(-r t / L), with fixed rates r. Positions are absolute, in units of
    a nominal length L, so that the filter does not depend on how long the input is.
    Source: Poli et al. 2023, arXiv 2302.10866, section 3.3; parameter names as in its reference.

    **Arguments:** `length` L; `width` of the MLP; `bands`, the number of frequencies f; `frequency` w of its sines.
    """

    reach = None

    def __init__(self, channels: int, length: int, width: int, bands: int, frequency: float):
        super().__init__()
        self.channels, self.length, self.bands = channels, length, bands
        self.bias = nn.Parameter(torch.randn(channels))
        # In the reference a sequence whose entries 1, 3 and 5 are one sine; here it is held once, by the first's name.
        self.implicit_filter = nn.ModuleDict(
            {
                "0": _WideLinear(1 + 2 * bands, width),
                "1": Sin(width, frequency),
                "2": _WideLinear(width, width),
                "4": _WideLinear(width, width),
                "6": _WideLinear(width, channels, bias=False),
            }
        )

    def forward(self, lags: int) -> Tensor:
        options = {"dtype": accumulation_dtype(self.bias.dtype), "device": self.bias.device}
        t = torch.arange(lags, **options).unsqueeze(-1) / self.length  # [lags, 1]
        angle = 2 * math.pi * t * torch.linspace(1e-4, self.bands - 1, self.bands, **options)
        rate = -math.log(FLOOR) * torch.linspace(1 / SLOW, 1 / FAST, self.channels, **options)
        h = torch.cat([t, angle.cos(), -angle.sin()], dim=-1)  # [lags, 1 + 2 bands]
        for layer in ("0", "2", "4"):
            h = self.implicit_filter["1"](self.implicit_filter[layer](h))
        h = self.implicit_filter["6"](h) * torch.exp(-rate * t)  # [lags, channels]
        return torch.cat([h[:1] + self.bias, h[1:]])
