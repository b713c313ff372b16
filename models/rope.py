"""Rotary position embedding. Source: Su et al. 2021, arXiv 2104.09864, equation 34, in the half-split layout."""

import torch
from torch import Tensor


def rope(x: Tensor, position: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotate feature pairs (i, i + K/2) of `x` [B, H, N, K] by position * base^(-2i/K); `position` [B or 1, N]."""
    half = x.shape[-1] // 2
    wide = torch.promote_types(x.dtype, torch.float32)
    frequency = base ** -(torch.arange(half, device=x.device, dtype=wide) / half)
    angle = position[:, None, :, None].to(wide) * frequency  # [B or 1, 1, N, K/2]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
