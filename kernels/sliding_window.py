"""Sliding-window attention: position t attends to the W positions t - W + 1 .. t.

Source: Beltagy et al. 2020, arXiv 2004.05150. Triton kernels go through the keys that a tile of queries reaches
(`kernels/sliding_window_prefill_triton.py`). The reference works in blocks of at least W positions: a query needs its
own block and the one before, so memory and operations grow with N W rather than N^2. Blocks are so many sequences of
their own to `scaled_dot_product_attention`, in four dimensions, as its kernels for a GPU ask: scores then never reach
memory. With C positions a block a token and head take 2 (C + W) (K + V) operations, half of them masked, and the bytes
of q, k, v and y, of k and v (1 + W / C) times in the blocks, written and read.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.attention import masked_attention
from kernels.backend import Backend, takes_triton
from kernels.sliding_window_prefill_triton import fused_sliding_window
from kernels.sliding_window_triton import fused_window_step
from kernels.storage import stored


class RingBuffer(NamedTuple):
    """The last W keys and values; the token at position p stands in slot p mod W, over the one W positions older."""

    k: Tensor  # [B, W, G, K]
    v: Tensor  # [B, W, G, V]
    length: Tensor  # [B], tokens seen so far


MIN_BLOCK = 16
"""A narrow window still works in blocks of this many positions, since smaller matrix products cost no less."""

DENSE = 1024
"""Up to this N a GPU computes all scores and masks them, in one kernel, sooner than blocks in several."""


def sliding_window_attention(
    q: Tensor, k: Tensor, v: Tensor, window_size: int, past: Tensor | None = None, backend: Backend | None = None
) -> Tensor:
    """The parallel form.

    **Arguments:** `q` [B, H, N, K]; `k` [B, G, P + N, K] and `v` [B, G, P + N, V], each for H / G heads, the P = W - 1
    positions before the first query included where `past` is given; `past` [B, P], True where such a position exists.
    **Returns** [B, H, N, V].
    """
    kernel = "sliding_window_float32" if q.dtype == torch.float32 else "sliding_window"
    if takes_triton(kernel, backend, (q, k, v), K=k.shape[-1], V=v.shape[-1]):
        return fused_sliding_window(q, k, v, window_size, past)
    if k.shape[1] < q.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
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
    visible = visible.expand(len(q), -1, -1, -1, -1)
    q, k, v, visible = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v, visible))  # [B n, H or 1, C or span, *]
    y = masked_attention(q, k, v, visible).unflatten(0, (-1, blocks))  # [B, n, H, C, V]
    return y.transpose(1, 2).flatten(2, 3)[..., :N, :]


def sliding_window_step(
    q: Tensor, k: Tensor, v: Tensor, ring: RingBuffer, backend: Backend | None = None
) -> tuple[Tensor, RingBuffer]:
    """The recurrent form, one token: its output [B, H, V] and the ring with its key and value in it.

    **Arguments:** `q` [B, H, K]; `k` [B, G, K] and `v` [B, G, V], each for H / G heads. Triton writes the new ring in
    the place of the old one, its length included.
    """
    if takes_triton("sliding_window_step", backend, (q, k, v), ring[:2], K=k.shape[-1], V=v.shape[-1]):
        y = fused_window_step(q, k, v, *ring)
        ring.length.add_(1)
        return y, ring
    W, G = ring.k.shape[1:3]
    slot = torch.arange(W, device=q.device)
    here = (slot == (ring.length % W)[:, None])[..., None, None]  # [B, W, 1, 1]
    ring_k, ring_v = (
        torch.where(here, stored(new.unsqueeze(1), old.dtype), old) for new, old in ((k, ring.k), (v, ring.v))
    )  # [B, W, G, *]
    filled = (slot <= ring.length[:, None])[:, None, None, :]  # [B, 1, 1, W]
    keys, values = (
        t.transpose(1, 2).to(q.dtype).repeat_interleave(q.shape[1] // G, 1) for t in (ring_k, ring_v)
    )  # [B, H, W, *]
    y = masked_attention(q.unsqueeze(2), keys, values, filled).squeeze(2)
    return y, RingBuffer(ring_k, ring_v, ring.length + 1)
