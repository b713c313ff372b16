"""The norm and gate that retention, gated linear attention and the delta rules put after reading their memory."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.mixer import accumulation_dtype

EPS = 1e-5
"""As in the reference implementations."""


class GatedRMSNorm(nn.Module):
    """rmsnorm(y) * silu(gate) in every head alone, with one weight [V] for all heads; without a gate, the norm.

    Norm first: Mamba-2, which gates first, has a norm of its own.
    """

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, y: Tensor, gate: Tensor | None) -> Tensor:
        """`y`, `gate` [..., V] -> [..., V]."""
        wide = accumulation_dtype(y.dtype)
        normed = F.rms_norm(y.to(wide), y.shape[-1:], eps=EPS) * self.weight.to(wide)
        return (normed if gate is None else normed * F.silu(gate.to(wide))).to(y.dtype)
