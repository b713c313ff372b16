"""Sliding-window attention: position t attends to the W positions t - W + 1 .. t.

Source: Beltagy et al. 2020, arXiv 2004.05150. In blocks of at least W positions a query needs its own block and the
one before, so memory and operations grow with N W rather than N^2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.attention import masked_attention

MIN_BLOCK = 16
"""A narrow window still works in blocks of this many positions, since smaller matrix products cost no less."""

DENSE = 1024
"""Up to this N a GPU computes all scores and masks them, in one kernel, sooner than blocks in several."""


def sliding_window_attention(q: Tensor, k: Tensor, v: Tensor, window_size: int, past: Tensor | None = None) -> Tensor:
    """The parallel form.

    **Arguments:** `q` [B, H, N, K]; `k` [B, H, P + N, K] and `v` [B, H, P + N, V], the P = W - 1 positions before the
    first query included where `past` is given; `past` [B, P], True where such a position exists.
    **Returns** [B, H, N, V].
    """
    N, W = q.shape[-2], window_size
    P = k.shape[-2] - N
    if q.is_cuda and past is None and N <= DENSE:
        t = torch.arange(N, device=q.device)
        ago = t[:, None] - t
        return masked_attention(q, k, v, (ago >= 0) & (ago < W))
    C = min(max(W, MIN_BLOCK), max(N, 1))
    blocks = -(-N // C)
    pad = blocks * C - N
    q = F.pad(q, (0, 0, 0, pad)).unflatten(-2, (blocks, C))  # [B, H, n, C, K]
    # Each block sees the W - 1 positions before it; slot j of block b holds position b C + j - (W - 1).
    before = W - 1 - P
    span = W - 1 + C
    k, v = (F.pad(t, (0, 0, before, pad)).unfold(-2, span, C).transpose(-1, -2) for t in (k, v))  # [B, H, n, span, *]

    i = torch.arange(C, device=q.device)[:, None]
    j = torch.arange(span, device=q.device)[None, :]
    band = (j >= i) & (j < i + W)  # [C, span]
    slot = j + C * torch.arange(blocks, device=q.device)[:, None]  # [n, span]
    exists = (slot >= W - 1)[None]  # [1, n, span]
    if past is not None:
        exists = F.pad(past, (before, N + pad), value=True)[:, slot]  # [B, n, span]
    visible = band & exists[:, None, :, None, :]  # [B or 1, 1, n, C, span]
    y = masked_attention(q, k, v, visible)
    return y.flatten(2, 3)[..., :N, :]
