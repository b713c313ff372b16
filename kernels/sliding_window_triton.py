"""A Triton kernel for a decode step of sliding-window attention over a ring buffer of keys and values.

Each of the W keys and values is read once and the new one written over the oldest, in place: 2 W (K + V) bytes in
bfloat16 a sequence and key-value head, and 2 W (K + V) operations a head.
"""

# Triton has no types for launches.
# pyright: reportArgumentType=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)

BLOCK, WARPS = 32, 2
"""Slots at a time, and the warps of a program."""


@triton.jit
def window_step(
    q_ptr, k_ptr, v_ptr, ring_k_ptr, ring_v_ptr, length_ptr, y_ptr,
    b, h, H, G, W, scale, qb, qh, kb, kh, vb, vh,
    K: tl.constexpr, BK: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """One head of one sequence: softmax over the ring, BW slots at a time."""
    g = h // (H // G)
    d, e = tl.arange(0, BK), tl.arange(0, BV)
    q = tl.load(q_ptr + b * qb + h * qh + d, mask=d < K, other=0.0).to(tl.float32) * (scale * LOG2E)
    new_k = tl.load(k_ptr + b * kb + g * kh + d, mask=d < K, other=0.0).to(ring_k_ptr.dtype.element_ty)
    new_v = tl.load(v_ptr + b * vb + g * vh + e, mask=e < V, other=0.0).to(ring_v_ptr.dtype.element_ty)
    length = tl.load(length_ptr + b)
    slot = length % W
    high = -float("inf")
    total = 0.0
    mean = tl.zeros([BV], tl.float32)
    for first in range(0, W, BW):
        w = first + tl.arange(0, BW)
        row = (b * W + w) * G + g
        # All slots, filled or not: to know which are takes a load to wait for.
        k = tl.load(ring_k_ptr + row[:, None] * K + d[None, :], mask=(w < W)[:, None] & (d < K)[None, :], other=0.0)
        v = tl.load(ring_v_ptr + row[:, None] * V + e[None, :], mask=(w < W)[:, None] & (e < V)[None, :], other=0.0)
        filled = (w < W) & (w <= length)
        # What is in the new token's slot, its own or the one before, is up to the program that writes it.
        here = (w == slot)[:, None]
        k = tl.where(here, new_k[None, :], k)
        v = tl.where(here, new_v[None, :], tl.where(filled[:, None], v, 0.0))
        s = tl.where(filled, tl.sum(k.to(tl.float32) * q[None, :], 1), -float("inf"))
        higher = tl.maximum(high, tl.max(s, 0))  # finite from the first round on, where slot 0 is always filled
        p = tl.exp2(s - higher)
        before = tl.exp2(high - higher)
        total = total * before + tl.sum(p, 0)
        mean = mean * before + tl.sum(p[:, None] * v.to(tl.float32), 0)
        high = higher
    tl.store(y_ptr + (b * H + h) * V + e, (mean / total).to(y_ptr.dtype.element_ty), mask=e < V)
    writes = h % (H // G) == 0
    at = (b * W + slot) * G + g
    tl.store(ring_k_ptr + at * K + d, new_k, mask=(d < K) & writes)
    tl.store(ring_v_ptr + at * V + e, new_v, mask=(e < V) & writes)


@triton.jit
def _step(
    q_ptr, k_ptr, v_ptr, ring_k_ptr, ring_v_ptr, length_ptr, y_ptr,
    H, G, W, scale, qb, qh, kb, kh, vb, vh,
    K: tl.constexpr, BK: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    window_step(
        q_ptr, k_ptr, v_ptr, ring_k_ptr, ring_v_ptr, length_ptr, y_ptr,
        tl.program_id(0).to(tl.int64), tl.program_id(1), H, G, W, scale, qb, qh, kb, kh, vb, vh, K, BK, V, BV, BW,
    )  # fmt: skip


@torch.library.custom_op("recallbench::sliding_window_step", mutates_args={"ring_k", "ring_v"})
def _decode(q: Tensor, k: Tensor, v: Tensor, ring_k: Tensor, ring_v: Tensor, length: Tensor) -> Tensor:
    (B, H, K), (_, W, G, V) = q.shape, ring_v.shape
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    y = q.new_empty(B, H, V)
    with torch.cuda.device_of(q):
        _step[(B, H)](
            q, k, v, ring_k, ring_v, length, y, H, G, W, K**-0.5,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
            *widths(K, V), BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return y


@_decode.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, ring_k: Tensor, ring_v: Tensor, length: Tensor) -> Tensor:
    return q.new_empty(*q.shape[:2], ring_v.shape[-1])


def widths(K: int, V: int) -> tuple[int, int, int, int]:
    """K and V, each with the power of two that holds it."""
    BK, BV = (1 << max(1, (width - 1).bit_length()) for width in (K, V))
    return K, BK, V, BV


def fused_window_step(q: Tensor, k: Tensor, v: Tensor, ring_k: Tensor, ring_v: Tensor, length: Tensor) -> Tensor:
    """`kernels.sliding_window.sliding_window_step` on a GPU: the output, the rings updated in place.

    **Raises** `ValueError` where shapes or devices do not fit together.
    """
    check("sliding_window_step", q, k, v, ring_k, ring_v, length)
    return _decode(q, k, v, ring_k, ring_v, length)


def check(
    kernel: str, q: Tensor, k: Tensor, v: Tensor, kept_k: Tensor, kept_v: Tensor, length: Tensor, by_head: bool = False
) -> None:
    """**Raises** `ValueError` where shapes or devices do not fit together.

    What is kept is a ring of C slots, [B, C, G, *], or `by_head` a cache of C slots, [B, G, C, *].
    """
    (B, H, K), (_, *kept, V), G = q.shape, kept_v.shape, kept_v.shape[1 if by_head else 2]
    shapes = {"k": (B, G, K), "v": (B, G, V), "kept k": (B, *kept, K), "kept v": (B, *kept, V), "length": (B,)}
    for (name, shape), t in zip(shapes.items(), (k, v, kept_k, kept_v, length), strict=True):
        if t.shape != shape:
            raise ValueError(f"{kernel} got {name} {list(t.shape)}, and takes {list(shape)}")
        if t.device != q.device:
            raise ValueError(f"{kernel} got q on {q.device} and {name} on {t.device}, and takes one device")
    if H % G:
        raise ValueError(f"{kernel} got {H} heads of queries, and takes a multiple of the {G} of keys")
