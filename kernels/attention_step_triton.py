"""Triton kernels for a decode step of softmax attention over a cache, to which the token's key and value are added.

A cache of n tokens is read once, 2 n (K + V) bytes in bfloat16 a sequence and key-value head, and as many operations a
query head; of its room past n nothing is touched, though n is known to the device alone, as a CUDA graph asks. Where
sequences and heads do not fill the chip, the cache is cut into spans, whose softmaxes a second kernel joins.
"""

# Triton has no types for launches.
# pyright: reportArgumentType=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sliding_window_triton import LOG2E, check, widths

BLOCK = 32
"""Slots at a time."""

PROGRAMS = 1024
"""A cache is cut until there are so many programs, eight for each processor of an H100,"""

LEAST_SPAN = 128
"""or a span has so few slots."""


@triton.jit
def _spans(
    q_ptr, k_ptr, v_ptr, cache_k_ptr, cache_v_ptr, length_ptr, y_ptr, high_ptr, total_ptr,
    H, G, C, span, scale, qb, qh, kb, kh, vb, vh,
    K: tl.constexpr, BK: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    """One head over one span of its cache: where it is `CUT`, a mean with the logarithm of its weight in two parts."""
    b, h, part = tl.program_id(0).to(tl.int64) // H, tl.program_id(0) % H, tl.program_id(1)
    g = h // (H // G)
    d, e, c = tl.arange(0, BK), tl.arange(0, BV), tl.arange(0, BC)
    length = tl.load(length_ptr + b)
    q = tl.load(q_ptr + b * qb + h * qh + d, mask=d < K, other=0.0).to(tl.float32) * (scale * LOG2E)
    # Each of the BC slots of a block goes on with a softmax of its own: until the end nothing passes between them.
    high = tl.full([BC], -float("inf"), tl.float32)
    total = tl.zeros([BC], tl.float32)
    mean = tl.zeros([BC, BV], tl.float32)
    if part == 0:
        new_k = tl.load(k_ptr + b * kb + g * kh + d, mask=d < K, other=0.0).to(cache_k_ptr.dtype.element_ty)
        new_v = tl.load(v_ptr + b * vb + g * vh + e, mask=e < V, other=0.0).to(cache_v_ptr.dtype.element_ty)
        at = (b * G + g) * C + length
        writes = h % (H // G) == 0
        tl.store(cache_k_ptr + at * K + d, new_k, mask=(d < K) & writes)
        tl.store(cache_v_ptr + at * V + e, new_v, mask=(e < V) & writes)
        high = tl.where(c == 0, tl.sum(new_k.to(tl.float32) * q, 0), high)
        total = tl.where(c == 0, 1.0, total)
        mean = tl.where((c == 0)[:, None], new_v.to(tl.float32)[None, :], mean)
    last = tl.minimum((part + 1) * span, length)
    for first in range(part * span, last, BC):
        slot = first + c
        inside = slot < last
        row = (b * G + g) * C + slot
        k = tl.load(cache_k_ptr + row[:, None] * K + d[None, :], mask=inside[:, None] & (d < K)[None, :], other=0.0)
        v = tl.load(cache_v_ptr + row[:, None] * V + e[None, :], mask=inside[:, None] & (e < V)[None, :], other=0.0)
        s = tl.sum(k.to(tl.float32) * q[None, :], 1)
        higher = tl.where(inside, tl.maximum(high, s), high)
        p = tl.where(inside, tl.exp2(s - higher), 0.0)
        before = tl.where(inside, tl.exp2(high - higher), 1.0)
        total = total * before + p
        mean = mean * before[:, None] + p[:, None] * v.to(tl.float32)
        high = higher
    highest = tl.max(high, 0)
    weight = tl.where(total > 0, tl.exp2(high - highest), 0.0)
    whole = tl.sum(total * weight, 0)
    y = tl.sum(mean * weight[:, None], 0) / tl.where(whole > 0, whole, 1.0)
    row = (b * H + h) * tl.num_programs(1) + part
    tl.store(y_ptr + row * V + e, y.to(y_ptr.dtype.element_ty), mask=e < V)
    if CUT:
        tl.store(high_ptr + row, highest)
        tl.store(total_ptr + row, whole)


@triton.jit
def _join(y_ptr, high_ptr, total_ptr, out_ptr, parts, V, BP: tl.constexpr, BV: tl.constexpr):
    """One head: the mean over all parts, each by its weight. The first part, with the new token, is never empty."""
    row = tl.program_id(0).to(tl.int64)
    p, e = tl.arange(0, BP), tl.arange(0, BV)
    at = row * parts + p
    total = tl.load(total_ptr + at, mask=p < parts, other=0.0)
    high = tl.load(high_ptr + at, mask=(p < parts) & (total > 0), other=-float("inf"))
    weight = total * tl.exp2(high - tl.max(high, 0))
    y = tl.load(y_ptr + at[:, None] * V + e[None, :], mask=(p < parts)[:, None] & (e < V)[None, :], other=0.0)
    out = tl.sum(y * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out_ptr + row * V + e, out.to(out_ptr.dtype.element_ty), mask=e < V)


@torch.library.custom_op("recallbench::attention_step", mutates_args={"cache_k", "cache_v"})
def _decode(q: Tensor, k: Tensor, v: Tensor, cache_k: Tensor, cache_v: Tensor, length: Tensor) -> Tensor:
    (B, H, K), (_, G, C, V) = q.shape, cache_v.shape
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    span = max(LEAST_SPAN, triton.cdiv(C * B * H, PROGRAMS))
    parts = triton.cdiv(C, span)
    out = q.new_empty(B, H, V)
    y = out if parts == 1 else q.new_empty(B, H, parts, V, dtype=torch.float32)
    high, total = q.new_empty(2, B, H, parts, dtype=torch.float32)
    sizes = widths(K, V)
    with torch.cuda.device_of(q):
        _spans[(B * H, parts)](
            q, k, v, cache_k, cache_v, length, y, high, total, H, G, C, span, K**-0.5,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *sizes, BLOCK, parts > 1, num_warps=4,
        )  # fmt: skip
        if parts > 1:
            _join[(B * H,)](y, high, total, out, parts, V, triton.next_power_of_2(parts), sizes[-1], num_warps=4)
    return out


@_decode.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cache_k: Tensor, cache_v: Tensor, length: Tensor) -> Tensor:
    return q.new_empty(*q.shape[:2], cache_v.shape[-1])


def fused_attention_step(q: Tensor, k: Tensor, v: Tensor, cache_k: Tensor, cache_v: Tensor, length: Tensor) -> Tensor:
    """`kernels.attention.attention_step` on a GPU: the output, the caches updated in place.

    **Raises** `ValueError` where shapes or devices do not fit together.
    """
    check("attention_step", q, k, v, cache_k, cache_v, length, by_head=True)
    return _decode(q, k, v, cache_k, cache_v, length)
