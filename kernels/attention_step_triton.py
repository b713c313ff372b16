"""Triton kernels for a decode step of softmax attention over a cache, to which the token's key and value are added.

A cache of n tokens is read once, 2 n (K + V) bytes in bfloat16 a sequence and key-value head, however many query heads
share it; of its room past n nothing is touched, though n is known to the device alone, as a CUDA graph asks. Where
sequences and heads do not fill the chip, the cache is cut into spans, whose softmaxes a second kernel joins.

A program of up to 16 query heads is one warp, which no other waits for: while it computes on a block of slots, the next
ones are on their way into its shared memory, of which a processor has enough for nine programs at K = V = 70 in
bfloat16. Tensor cores multiply: queries and probabilities are rounded to the cache's dtype, and sums are in float32.
"""

# Triton has no types for launches.
# pyright: reportArgumentType=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sliding_window_triton import LOG2E, check

BLOCK = 32
"""Slots at a time."""

LEAST = 16
"""The least size of a product on tensor cores."""

PROGRAMS = 1024
"""A cache is cut until there are so many programs, nearly eight for each processor of an H100,"""

LEAST_SPAN = 128
"""or a span has hardly more slots."""


@triton.jit
def _load(at, WIDTH: tl.constexpr, FROM: tl.constexpr, PART: tl.constexpr, inside):
    """Of rows [n, WIDTH] at `at` the PART columns from FROM on, 0 past the width and, unread, in rows not `inside`."""
    column = FROM + tl.arange(0, PART)[None, :]
    mask = inside if FROM + PART <= WIDTH else inside & (column < WIDTH)
    return tl.load(at + column, mask=mask, other=0.0)


@triton.jit
def _store(at, x, WIDTH: tl.constexpr, FROM: tl.constexpr, PART: tl.constexpr, inside):
    column = FROM + tl.arange(0, PART)[None, :]
    tl.store(at + column, x.to(at.dtype.element_ty), mask=inside & (column < WIDTH))


@triton.jit
def _add(new_at, at, WIDTH: tl.constexpr, FROM: tl.constexpr, PART: tl.constexpr):
    """The new token's columns, put into the cache: [1, PART] as they are there."""
    x = _load(new_at, WIDTH, FROM, PART, tl.full([1, 1], True, tl.int1)).to(at.dtype.element_ty)
    _store(at, x, WIDTH, FROM, PART, tl.full([1, 1], True, tl.int1))
    return x.to(tl.float32)


@triton.jit
def _block(
    q0, q1, k_at, v_at, inside, high, total, y0, y1, scale,
    K: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr, V: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr,
):  # fmt: skip
    """A block of slots, rows at `k_at` and `v_at` [BC, 1]: what precedes it is y [BR, V] of a sum `total` 2^`high`."""
    s = tl.dot(q0, _load(k_at, K, 0, K0, inside).T, input_precision="ieee")
    if K1 > 0:
        s = tl.dot(q1, _load(k_at, K, K0, K1, inside).T, s, input_precision="ieee")
    s = tl.where(inside.T, s * scale, -float("inf"))
    higher = tl.maximum(high, tl.max(s, 1))
    p, before = tl.exp2(s - higher[:, None]), tl.exp2(high - higher)
    total = total * before + tl.sum(p, 1)
    p = p.to(v_at.dtype.element_ty)
    y0 = tl.dot(p, _load(v_at, V, 0, V0, inside), y0 * before[:, None], input_precision="ieee")
    if V1 > 0:
        y1 = tl.dot(p, _load(v_at, V, V0, V1, inside), y1 * before[:, None], input_precision="ieee")
    return higher, total, y0, y1


@triton.jit
def _spans(
    q_ptr, k_ptr, v_ptr, cache_k_ptr, cache_v_ptr, length_ptr, y_ptr, high_ptr, total_ptr,
    G, C, span, scale, qb, qh, kb, kh, vb, vh,
    R: tl.constexpr, BR: tl.constexpr, K: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr,
    V: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr, BC: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    """The R queries of a key-value head over one span: where it is `CUT`, a mean with the logarithm of its weight.

    Columns are in two parts, K0 + K1 >= K and V0 + V1 >= V, since sizes of blocks are powers of two; or K1 = 0.
    """
    bg, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, g = bg // G, bg % G
    r, c = tl.arange(0, BR)[:, None], tl.arange(0, BC)[:, None]
    length = tl.load(length_ptr + b).to(tl.int32)
    past_k, past_v = cache_k_ptr + bg * C * K, cache_v_ptr + bg * C * V
    q_at = q_ptr + b * qb + (g * R + r) * qh
    q0 = _load(q_at, K, 0, K0, r < R).to(past_k.dtype.element_ty)
    q1 = _load(q_at, K, K0, K1, r < R).to(past_k.dtype.element_ty) if K1 > 0 else q0
    high = tl.full([BR], -float("inf"), tl.float32)
    total = tl.zeros([BR], tl.float32)
    y0 = tl.zeros([BR, V0], tl.float32)
    y1 = tl.zeros([BR, V1], tl.float32) if V1 > 0 else y0
    if part == 0:
        k_at, v_at = k_ptr + b * kb + g * kh, v_ptr + b * vb + g * vh
        high = tl.sum(q0.to(tl.float32) * _add(k_at, past_k + length * K, K, 0, K0), 1)
        if K1 > 0:
            high += tl.sum(q1.to(tl.float32) * _add(k_at, past_k + length * K, K, K0, K1), 1)
        high *= scale
        total += 1.0
        y0 += _add(v_at, past_v + length * V, V, 0, V0)
        if V1 > 0:
            y1 += _add(v_at, past_v + length * V, V, V0, V1)
    first, last = part * span, tl.minimum((part + 1) * span, length)
    full = first + tl.maximum(last - first, 0) // BC * BC
    for slot in range(first, full, BC):
        k_at, v_at = past_k + slot * K + c * K, past_v + slot * V + c * V
        inside = tl.full([BC, 1], True, tl.int1)
        high, total, y0, y1 = _block(q0, q1, k_at, v_at, inside, high, total, y0, y1, scale, K, K0, K1, V, V0, V1)
    if full < last:
        k_at, v_at = past_k + full * K + c * K, past_v + full * V + c * V
        inside = full + c < last
        high, total, y0, y1 = _block(q0, q1, k_at, v_at, inside, high, total, y0, y1, scale, K, K0, K1, V, V0, V1)
    whole = tl.where(total > 0, total, 1.0)[:, None]
    row = (bg * R + r) * tl.num_programs(1) + part
    _store(y_ptr + row * V, y0 / whole, V, 0, V0, r < R)
    if V1 > 0:
        _store(y_ptr + row * V, y1 / whole, V, V0, V1, r < R)
    if CUT:
        tl.store(high_ptr + row, high[:, None], mask=r < R)
        tl.store(total_ptr + row, total[:, None], mask=r < R)


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


def _powers(width: int) -> tuple[int, int]:
    """Two powers of two that hold a width together, the second 0 where the first does alone."""
    first = max(LEAST, 1 << (width.bit_length() - 1))
    return first, max(LEAST, 1 << (width - first - 1).bit_length()) if width > first else 0


@torch.library.custom_op("recallbench::attention_step", mutates_args={"cache_k", "cache_v"})
def _decode(q: Tensor, k: Tensor, v: Tensor, cache_k: Tensor, cache_v: Tensor, length: Tensor) -> Tensor:
    (B, H, K), (_, G, C, V) = q.shape, cache_v.shape
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    parts = min(triton.cdiv(PROGRAMS, B * G), max(C // LEAST_SPAN, 1))
    span = triton.cdiv(C, parts * BLOCK) * BLOCK
    out = q.new_empty(B, H, V)
    y = out if parts == 1 else q.new_empty(B, H, parts, V, dtype=torch.float32)
    high, total = q.new_empty(2, B, H, parts, dtype=torch.float32)
    R = H // G
    BR = max(LEAST, triton.next_power_of_2(R))
    with torch.cuda.device_of(q):
        _spans[(B * G, parts)](
            q, k, v, cache_k, cache_v, length, y, high, total, G, C, span, K**-0.5 * LOG2E,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
            R, BR, K, *_powers(K), V, *_powers(V), BLOCK, parts > 1, num_warps=BR // LEAST, num_stages=3,
        )  # fmt: skip
        if parts > 1:
            _join[(B * H,)](
                y, high, total, out, parts, V, triton.next_power_of_2(parts), triton.next_power_of_2(V), num_warps=4
            )
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
