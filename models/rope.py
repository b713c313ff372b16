"""Rotary position embedding. Source: Su et al. 2021, arXiv 2104.09864, equation 34, in the half-split layout."""

import torch
from torch import Tensor


def rope(x: Tensor, position: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotate feature pairs (i, i + K/2) of `x` [B, H, N, K] by position * base^(-2i/K); `position` [B or 1, N]."""
    half = x.shape[-1] // 2
    table = _table if x.shape[2] > 1 else _rotations  # of one token it is less work to compute than to store
    cos, sin = table(position, half, base, x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def _rotations(position: Tensor, half: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles, [B or 1, 1, N, K/2] each."""
    wide = torch.promote_types(dtype, torch.float32)
    frequency = base ** -(torch.arange(half, device=position.device, dtype=wide) / half)
    angle = position[:, None, :, None].to(wide) * frequency
    return angle.cos().to(dtype), angle.sin().to(dtype)


# An operation of its own, since the compiler computes anew in every kernel what it can see into. Where gradients are
# wanted it keeps one of equal calls, for all layers and for their backward passes.
_table = torch.library.custom_op("recallbench::rotations", _rotations, mutates_args=())


@_table.register_fake
def _(position: Tensor, half: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    cos = position.new_empty((position.shape[0], 1, position.shape[1], half), dtype=dtype)
    return cos, torch.empty_like(cos)
