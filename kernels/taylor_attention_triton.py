"""Triton kernels for Taylor linear attention: its features are made on the chip and never stored.

A sequence is cut into segments of equal length, as many as fill the chip. A first kernel sums phi(k) v^T and phi(k)
over each segment; a second goes through each segment in chunks of C, with dense scores within a chunk and the running
sums in registers for all before it, starting from the sums of the segments before its own. One segment alone needs no
first kernel. The backward pass makes everything again: queries' gradients in the same order, keys' and values' in
reverse, with sums over the queries that come after.

A token and head take, forward: 4 K (K + 2) V operations for the sums, 2 C (K + V) within the chunk, and the keys' half
of the former again where there are several segments; bytes are those of q, k, v and y, 2 (2 K + 2 V) in bfloat16, and
those of one state a segment. Beyond K = 16 (8 in float32) the features are cut into parts, since a program that held
the sums of all would spill them; what the parts add to y, dq, dk and dv is in float32 and added up after, 8 V bytes
each forward and 16 K + 8 V backward.
"""

# Triton has no types for launches, nor for functions of kernels that return several tensors.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linear_attention import LinearAttentionState
from kernels.taylor_features import feature_count
from kernels.taylor_sums_triton import (
    BX,
    NE,
    by_rows,
    ceil,
    check,
    gradient,
    load_sums,
    one_more,
    read,
    rows,
    store_sums,
    values,
    with_one,
    write,
)

PROGRAMS = 132
"""Sequences are cut into segments until there are so many programs, one for each processor of an H100."""

CHUNK = {2: 128, 4: 32}
"""Positions a chunk, C, by the bytes of an element: as many as registers let one product take."""

PRODUCTS = {2: 256, 4: 64}
"""Of two elements of a key, as many as a program holds the sums of, [.., V] up to V = 64, and half so many beyond."""

GROUPS = {2: 2, 4: 1}
"""In so many at a time: only those of one stand in registers, 16 bits each, as they come out of the multiplication."""

MOST_SEGMENTS = 16
"""More would spend more on adding up the segments before than they spare."""


@triton.jit
def _segment_sums(
    x_ptr, u_ptr, e_ptr, S_ptr, z_ptr, H, N, V, F, span, segments, skipped, xb, xh, xn, ub, uh, un, scale,
    K: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    FEW: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr, HAS_E: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums over the writers x of each segment but those skipped; e is 1 where it is not given."""
    sequence, segment = tl.program_id(0).to(tl.int64), skipped + tl.program_id(1)
    part = tl.program_id(2) % PARTS
    base, v = part * FEW * GROUPS, tl.program_id(2) // PARTS * BV + tl.arange(0, BV)
    c, d = tl.arange(0, C), tl.arange(0, BK)
    x_ptr += sequence // H * xb + sequence % H * xh
    u_ptr += sequence // H * ub + sequence % H * uh
    S1, S2 = load_sums(S_ptr, None, sequence, 0, 0, segments, base, v, F, V, scale, K, BK, FEW, GROUPS, False)
    Z1, Z2 = load_sums(
        z_ptr, None, sequence, 0, 0, segments, base, tl.arange(0, NE), F, 1, scale, K, BK, FEW, GROUPS, False
    )
    for start in range(segment * span, tl.minimum((segment + 1) * span, N), C):
        n = start + c
        inside = n < N
        x, x1 = rows(x_ptr, n, inside, xn, d, K), with_one(x_ptr, n, inside, xn, K)
        u = values(u_ptr, n, inside, un, v, V)
        e = inside.to(tl.float32)
        if HAS_E:
            e = tl.load(e_ptr + sequence * N + n, mask=inside, other=0.0)
        e = one_more(e, x.dtype)
        S1, S2, Z1, Z2 = write(S1, S2, Z1, Z2, x_ptr, n, inside, xn, x, x1, u, e, base, K, FEW, GROUPS, PRECISION)
    row, first = sequence * segments + segment, tl.program_id(2) < PARTS
    store_sums(S_ptr, row, S1, S2, base, v, True, part == 0, F, V, scale, K, BK, FEW, GROUPS)
    store_sums(z_ptr, row, Z1, Z2, base, tl.arange(0, NE), first, part == 0, F, 1, scale, K, BK, FEW, GROUPS)


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, S_ptr, z_ptr, first_S_ptr, first_z_ptr, y_ptr, den_ptr, last_S_ptr, last_z_ptr,
    H, N, V, F, span, segments, qb, qh, qn, kb, kh, kn, vb, vh, vn, scale, eps,
    K: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    FEW: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr, HAS_FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Outputs of a segment, the sums of similarities that they are divided by and, after the last, the state.

    Where there are several parts of the features, what each adds to the outputs, which are then not divided yet.
    """
    sequence, segment = tl.program_id(0).to(tl.int64), tl.program_id(1)
    part = tl.program_id(2) % PARTS
    base, v = part * FEW * GROUPS, tl.program_id(2) // PARTS * BV + tl.arange(0, BV)
    c, d = tl.arange(0, C), tl.arange(0, BK)
    b, h = sequence // H, sequence % H
    q_ptr += b * qb + h * qh
    k_ptr += b * kb + h * kh
    v_ptr += b * vb + h * vh
    y_ptr += (part.to(tl.int64) * tl.num_programs(0) + sequence) * N * V
    den_ptr += (part.to(tl.int64) * tl.num_programs(0) + sequence) * N
    S1, S2 = load_sums(
        S_ptr, first_S_ptr, sequence, 0, segment, segments, base, v, F, V, scale, K, BK, FEW, GROUPS, HAS_FIRST
    )
    Z1, Z2 = load_sums(
        z_ptr,
        first_z_ptr,
        sequence,
        0,
        segment,
        segments,
        base,
        tl.arange(0, NE),
        F,
        1,
        scale,
        K,
        BK,
        FEW,
        GROUPS,
        HAS_FIRST,
    )
    first = tl.program_id(2) < PARTS  # of the values
    causal = c[:, None] >= c[None, :]
    for start in range(segment * span, tl.minimum((segment + 1) * span, N), C):
        n = start + c
        inside = n < N
        q, q1 = rows(q_ptr, n, inside, qn, d, K), with_one(q_ptr, n, inside, qn, K)
        k, k1 = rows(k_ptr, n, inside, kn, d, K), with_one(k_ptr, n, inside, kn, K)
        u = values(v_ptr, n, inside, vn, v, V)
        num, den = read(
            q_ptr, n, inside, qn, q, q1, S1, S2, Z1, Z2, base, scale, PARTS == 1 or part == 0,
            K, BV, FEW, GROUPS, PRECISION,
        )  # fmt: skip
        if PARTS == 1 or part == 0:
            s = scale * tl.dot(q, k.T, input_precision=PRECISION)
            w = tl.where(causal, 1 + s + 0.5 * s * s, 0.0)
            num = tl.dot(w.to(q.dtype), u, num, input_precision=PRECISION)
            den += tl.sum(w, 1) + eps
        tl.store(den_ptr + n, den, mask=inside & first)
        if PARTS == 1:
            num *= (1 / den)[:, None]
        at = y_ptr + n[:, None] * V + v[None, :]
        tl.store(at, num.to(y_ptr.dtype.element_ty), mask=inside[:, None] & (v < V)[None, :])
        e = one_more(inside.to(tl.float32), k.dtype)
        S1, S2, Z1, Z2 = write(S1, S2, Z1, Z2, k_ptr, n, inside, kn, k, k1, u, e, base, K, FEW, GROUPS, PRECISION)
    if segment == segments - 1:
        store_sums(last_S_ptr, sequence, S1, S2, base, v, True, part == 0, F, V, scale, K, BK, FEW, GROUPS)
        store_sums(
            last_z_ptr, sequence, Z1, Z2, base, tl.arange(0, NE), first, part == 0, F, 1, scale, K, BK, FEW, GROUPS
        )


@triton.jit
def _by_numerator(y_ptr, den_ptr, dy_ptr, u_ptr, e_ptr, rows, V, BV: tl.constexpr, C: tl.constexpr):
    """Gradients by what a quotient came from: by the numerator u = dy / den, by the denominator e = - dy . y / den."""
    n = tl.program_id(0).to(tl.int64) * C + tl.arange(0, C)
    v = tl.arange(0, BV)
    inside = (n < rows)[:, None] & (v < V)[None, :]
    at = n[:, None] * V + v[None, :]
    y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
    den = tl.load(den_ptr + n, mask=n < rows, other=1.0)
    tl.store(u_ptr + at, (dy / den[:, None]).to(u_ptr.dtype.element_ty), mask=inside)
    tl.store(e_ptr + n, -tl.sum(dy * y, 1) / den, mask=n < rows)


@triton.jit
def _queries_backward(
    q_ptr, k_ptr, v_ptr, u_ptr, e_ptr, S_ptr, z_ptr, first_S_ptr, first_z_ptr, dq_ptr,
    H, N, V, F, span, segments, qb, qh, qn, kb, kh, kn, vb, vh, vn, scale,
    K: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    FEW: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr, HAS_FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of a segment's queries by one part of the features, the sums made again."""
    sequence, segment = tl.program_id(0).to(tl.int64), tl.program_id(1)
    part = tl.program_id(2) % PARTS
    base, v = part * FEW * GROUPS, tl.program_id(2) // PARTS * BV + tl.arange(0, BV)
    c, d = tl.arange(0, C), tl.arange(0, BK)
    dq_ptr += part.to(tl.int64) * tl.num_programs(0) * N * K
    b, h = sequence // H, sequence % H
    q_ptr += b * qb + h * qh
    k_ptr += b * kb + h * kh
    v_ptr += b * vb + h * vh
    S1, S2 = load_sums(
        S_ptr, first_S_ptr, sequence, 0, segment, segments, base, v, F, V, scale, K, BK, FEW, GROUPS, HAS_FIRST
    )
    Z1, Z2 = load_sums(
        z_ptr,
        first_z_ptr,
        sequence,
        0,
        segment,
        segments,
        base,
        tl.arange(0, NE),
        F,
        1,
        scale,
        K,
        BK,
        FEW,
        GROUPS,
        HAS_FIRST,
    )
    causal = c[:, None] >= c[None, :]
    x = tl.arange(0, BX)
    for start in range(segment * span, tl.minimum((segment + 1) * span, N), C):
        n = start + c
        inside = n < N
        row = sequence * N + n
        q, q1 = rows(q_ptr, n, inside, qn, d, K), with_one(q_ptr, n, inside, qn, K)
        k, k1 = rows(k_ptr, n, inside, kn, d, K), with_one(k_ptr, n, inside, kn, K)
        value, u = values(v_ptr, n, inside, vn, v, V), values(u_ptr, row, inside, V, v, V)
        e = tl.load(e_ptr + row, mask=inside, other=0.0)
        dq = gradient(
            q_ptr, n, inside, qn, q1, u, e, S1, S2, Z1, Z2, base, scale, PARTS == 1 or part == 0,
            K, BK, FEW, GROUPS, PRECISION,
        )  # fmt: skip
        if PARTS == 1 or part == 0:
            s = scale * tl.dot(q, k.T, input_precision=PRECISION)
            dw = tl.dot(u, value.T, input_precision=PRECISION) + e[:, None]
            ds = tl.where(causal, scale * dw * (1 + s), 0.0)
            dq = tl.dot(ds.to(q.dtype), k1, dq, input_precision=PRECISION)
        at = dq_ptr + row[:, None] * K + x[None, :]
        tl.store(at, dq.to(dq_ptr.dtype.element_ty), mask=inside[:, None] & (x < K)[None, :])
        one = one_more(inside.to(tl.float32), k.dtype)
        S1, S2, Z1, Z2 = write(S1, S2, Z1, Z2, k_ptr, n, inside, kn, k, k1, value, one, base, K, FEW, GROUPS, PRECISION)


@triton.jit
def _keys_backward(
    q_ptr, k_ptr, v_ptr, u_ptr, e_ptr, R_ptr, r_ptr, last_R_ptr, last_r_ptr, dk_ptr, dv_ptr, dS_ptr, dz_ptr,
    H, N, V, F, span, segments, qb, qh, qn, kb, kh, kn, vb, vh, vn, scale,
    K: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    FEW: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr, HAS_FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of a segment's keys and values by one part of the features.

    Last chunk first: keys read what the queries after them write.
    """
    sequence, segment = tl.program_id(0).to(tl.int64), tl.program_id(1)
    part = tl.program_id(2) % PARTS
    base, v = part * FEW * GROUPS, tl.program_id(2) // PARTS * BV + tl.arange(0, BV)
    c, d = tl.arange(0, C), tl.arange(0, BK)
    dk_ptr += part.to(tl.int64) * tl.num_programs(0) * N * K
    dv_ptr += part.to(tl.int64) * tl.num_programs(0) * N * V
    b, h = sequence // H, sequence % H
    q_ptr += b * qb + h * qh
    k_ptr += b * kb + h * kh
    v_ptr += b * vb + h * vh
    R1, R2 = load_sums(
        R_ptr,
        last_R_ptr,
        sequence,
        segment + 1,
        segments,
        segments,
        base,
        v,
        F,
        V,
        scale,
        K,
        BK,
        FEW,
        GROUPS,
        HAS_FIRST,
    )
    r1, r2 = load_sums(
        r_ptr,
        last_r_ptr,
        sequence,
        segment + 1,
        segments,
        segments,
        base,
        tl.arange(0, NE),
        F,
        1,
        scale,
        K,
        BK,
        FEW,
        GROUPS,
        HAS_FIRST,
    )
    later = c[:, None] <= c[None, :]  # keys down, queries across
    x = tl.arange(0, BX)
    chunks = tl.cdiv(tl.minimum((segment + 1) * span, N) - segment * span, C)
    for turn in range(chunks):
        n = segment * span + (chunks - 1 - turn) * C + c
        inside = n < N
        row = sequence * N + n
        k, k1 = rows(k_ptr, n, inside, kn, d, K), with_one(k_ptr, n, inside, kn, K)
        q, q1 = rows(q_ptr, n, inside, qn, d, K), with_one(q_ptr, n, inside, qn, K)
        value, u = values(v_ptr, n, inside, vn, v, V), values(u_ptr, row, inside, V, v, V)
        e = tl.load(e_ptr + row, mask=inside, other=0.0)
        dv, _ = read(
            k_ptr, n, inside, kn, k, k1, R1, R2, r1, r2, base, scale, PARTS == 1 or part == 0,
            K, BV, FEW, GROUPS, PRECISION,
        )  # fmt: skip
        dk = gradient(
            k_ptr, n, inside, kn, k1, value, inside.to(tl.float32), R1, R2, r1, r2, base,
            scale, PARTS == 1 or part == 0, K, BK, FEW, GROUPS, PRECISION,
        )  # fmt: skip
        if PARTS == 1 or part == 0:
            s = scale * tl.dot(k, q.T, input_precision=PRECISION)
            w = tl.where(later, 1 + s + 0.5 * s * s, 0.0)  # of queries that are not inside, u and e are 0
            dv = tl.dot(w.to(k.dtype), u, dv, input_precision=PRECISION)
            dw = tl.dot(value, u.T, input_precision=PRECISION) + e[None, :]
            ds = tl.where(later, scale * dw * (1 + s), 0.0)
            dk = tl.dot(ds.to(k.dtype), q1, dk, input_precision=PRECISION)
        at = dk_ptr + row[:, None] * K + x[None, :]
        tl.store(at, dk.to(dk_ptr.dtype.element_ty), mask=inside[:, None] & (x < K)[None, :])
        at = dv_ptr + row[:, None] * V + v[None, :]
        tl.store(at, dv.to(dv_ptr.dtype.element_ty), mask=inside[:, None] & (v < V)[None, :])
        e = one_more(e, q.dtype)
        R1, R2, r1, r2 = write(R1, R2, r1, r2, q_ptr, n, inside, qn, q, q1, u, e, base, K, FEW, GROUPS, PRECISION)
    if segment == 0:
        store_sums(dS_ptr, sequence, R1, R2, base, v, True, part == 0, F, V, scale, K, BK, FEW, GROUPS)
        store_sums(dz_ptr, sequence, r1, r2, base, tl.arange(0, NE), True, part == 0, F, 1, scale, K, BK, FEW, GROUPS)


Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""y [B, H, N, V], S and z after all tokens, the sums that were divided by [B, H, N], S and z summed over segments."""


@torch.library.custom_op("recallbench::taylor_attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, S: Tensor | None, z: Tensor | None, eps: float) -> Outputs:
    q, k, v = by_rows(q, k, v)
    S, z = (None if t is None else t.contiguous() for t in (S, z))
    y, last_S, last_z, den, sum_S, sum_z = _empty_outputs(q, v, S, z)
    B, H, N, K = q.shape
    span = _span(q)
    segments = ceil(N, span)
    blocks = _blocks(K, v.shape[-1], q.dtype)
    count = blocks["PARTS"]
    grid = (B * H, segments, ceil(v.shape[-1], blocks["BV"]) * count)
    num, total = (t if count == 1 else t.new_empty(count, *t.shape, dtype=torch.float32) for t in (y, den))
    sizes = (H, N, v.shape[-1], feature_count(K), span, segments)
    with torch.cuda.device_of(q):
        if segments > 1:
            strides = (*k.stride()[:3], *v.stride()[:3])
            _segment_sums[(B * H, segments - 1, grid[-1])](  # the last is before no other
                k, v, None, sum_S, sum_z, *sizes, 0, *strides, K**-0.5, HAS_E=False, **blocks
            )
        strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
        _forward[grid](
            q, k, v, sum_S, sum_z, S, z, num, total, last_S, last_z, *sizes, *strides, K**-0.5, eps,
            HAS_FIRST=S is not None, **blocks,
        )  # fmt: skip
    if count > 1:
        torch.sum(total, 0, out=den)
        y.copy_(num.sum(0) / den.unsqueeze(-1))
    return y, last_S, last_z, den, sum_S, sum_z


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, S: Tensor | None, z: Tensor | None, eps: float) -> Outputs:
    return _empty_outputs(q, v, S, z)


Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Of q, k, v and, in float32, of S and z before the first token."""


@torch.library.custom_op("recallbench::taylor_attention_backward", mutates_args=())
def _gradients(
    q: Tensor, k: Tensor, v: Tensor, S: Tensor | None, z: Tensor | None,
    y: Tensor, den: Tensor, sum_S: Tensor, sum_z: Tensor, dy: Tensor, dlast_S: Tensor | None, dlast_z: Tensor | None,
) -> Gradients:  # fmt: skip
    q, k, v = by_rows(q, k, v)
    S, z, dlast_S, dlast_z = (None if t is None else t.contiguous() for t in (S, z, dlast_S, dlast_z))
    (B, H, N, K), V = q.shape, v.shape[-1]
    span = _span(q)
    segments = ceil(N, span)
    blocks = _blocks(K, V, q.dtype)
    whole = max(16, triton.next_power_of_2(V))
    all_values = {**blocks, "BV": whole}
    grid, sizes = (B * H, segments), (H, N, V, feature_count(K), span, segments)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], K**-0.5)
    u, e = torch.empty_like(y), torch.empty_like(den)
    later_S, later_z = torch.empty_like(sum_S), torch.empty_like(sum_z)
    count = blocks["PARTS"]
    dq, dk, dv = (
        t.new_empty(count, *t.shape, dtype=torch.float32 if count > 1 else t.dtype) for t in (q, k, v)
    )  # a sum of parts each
    dS, dz = _empty_state_gradients(q, v)
    with torch.cuda.device_of(q):
        _by_numerator[(ceil(B * H * N, 32),)](y, den, dy.contiguous(), u, e, B * H * N, V, whole, 32)
        if segments > 1:
            of_q_and_u = (*q.stride()[:3], *u.stride()[:3])
            _segment_sums[(B * H, segments - 1, ceil(V, blocks["BV"]) * count)](  # the first is after no other
                q, u, e, later_S, later_z, *sizes, 1, *of_q_and_u, K**-0.5, HAS_E=True, **blocks
            )
        grid = (*grid, count)
        _queries_backward[grid](
            q, k, v, u, e, sum_S, sum_z, S, z, dq, *sizes, *strides, HAS_FIRST=S is not None, **all_values
        )
        _keys_backward[grid](
            q, k, v, u, e, later_S, later_z, dlast_S, dlast_z, dk, dv, dS, dz, *sizes, *strides,
            HAS_FIRST=dlast_S is not None, **all_values,
        )  # fmt: skip
    dq, dk, dv = (t.sum(0).to(of.dtype) if count > 1 else t[0] for t, of in ((dq, q), (dk, k), (dv, v)))
    return dq, dk, dv, dS, dz


@_gradients.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, S: Tensor | None, z: Tensor | None,
    y: Tensor, den: Tensor, sum_S: Tensor, sum_z: Tensor, dy: Tensor, dlast_S: Tensor | None, dlast_z: Tensor | None,
) -> Gradients:  # fmt: skip
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), *_empty_state_gradients(q, v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    *tensors, _ = inputs
    y, _, _, den, sum_S, sum_z = output
    ctx.mark_non_differentiable(den, sum_S, sum_z)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, y, den, sum_S, sum_z)


def _backward(
    ctx: Any, dy: Tensor | None, dlast_S: Tensor | None, dlast_z: Tensor | None, *unused: None
) -> tuple[Tensor | None, ...]:
    q, k, v, S, z, y, den, sum_S, sum_z = ctx.saved_tensors
    dy = torch.zeros_like(y) if dy is None else dy
    if (dlast_S is None) != (dlast_z is None):
        shape = (*q.shape[:2], feature_count(q.shape[-1]))
        dlast_S = y.new_zeros(*shape, v.shape[-1]) if dlast_S is None else dlast_S
        dlast_z = y.new_zeros(shape) if dlast_z is None else dlast_z
    dq, dk, dv, dS, dz = _gradients(q, k, v, S, z, y, den, sum_S, sum_z, dy, dlast_S, dlast_z)
    return dq, dk, dv, None if S is None else dS.to(S.dtype), None if z is None else dz.to(z.dtype), None


_attention.register_autograd(_backward, setup_context=_save)


@_attention.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Outputs, tuple[int, ...]]:
    """Members are so many more sequences."""
    *tensors, eps = args
    merged = [
        None if t is None else (t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)
        for t, dim in zip(tensors, in_dims, strict=False)
    ]
    y, last_S, last_z, den, sum_S, sum_z = (t.unflatten(0, (info.batch_size, -1)) for t in _attention(*merged, eps))
    return (y, last_S, last_z, den, sum_S, sum_z), 6 * (0,)


def fused_taylor_attention(
    q: Tensor, k: Tensor, v: Tensor, state: LinearAttentionState | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`kernels.taylor_attention.taylor_attention` on a GPU: outputs, S and z, for any strides, sums in float32.

    **Raises** `ValueError` where shapes, dtypes or devices do not fit together.
    """
    S, z = (None, None) if state is None else state
    check(q, k, v, S, z)
    return _attention(q, k, v, S, z, eps)[:3]


def _empty_outputs(q: Tensor, v: Tensor, S: Tensor | None, z: Tensor | None) -> Outputs:
    (B, H, N, K), V = q.shape, v.shape[-1]
    F = feature_count(K)
    of_S, of_z = (torch.float32 if t is None else t.dtype for t in (S, z))
    segments = ceil(N, _span(q))
    several = segments if segments > 1 else 0
    return (
        v.new_empty(v.shape),
        v.new_empty(B, H, F, V, dtype=of_S),
        v.new_empty(B, H, F, dtype=of_z),
        v.new_empty(B, H, N, dtype=torch.float32),
        v.new_empty(B, H, several, F, V, dtype=torch.float32),
        v.new_empty(B, H, several, F, dtype=torch.float32),
    )


def _empty_state_gradients(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    shape = (*q.shape[:2], feature_count(q.shape[-1]))
    return q.new_empty(*shape, v.shape[-1], dtype=torch.float32), q.new_empty(shape, dtype=torch.float32)


def _span(q: Tensor) -> int:
    """Positions a segment, whole chunks."""
    B, H, N, _ = q.shape
    chunk = CHUNK[q.itemsize]
    chunks = ceil(N, chunk)
    segments = min(max(1, PROGRAMS // (B * H)), chunks, MOST_SEGMENTS)
    return ceil(chunks, segments) * chunk


def _blocks(K: int, V: int, dtype: torch.dtype) -> dict[str, Any]:
    """Block sizes and the compiler's options."""
    size, BK = dtype.itemsize, max(16, triton.next_power_of_2(K))
    few = min(PRODUCTS[size] // (2 if V > 64 else 1) // BK, triton.next_power_of_2(K))
    groups = min(GROUPS[size], few)
    return {
        "K": K,
        "BK": BK,
        "BV": max(16, min(triton.next_power_of_2(V), 64)),
        "C": CHUNK[size],
        "FEW": few // groups,
        "GROUPS": groups,
        "PARTS": ceil(K, few),
        "PRECISION": "tf32x3" if dtype == torch.float32 else "ieee",
        "num_warps": 8 if size == 2 else 4,
        "num_stages": 1,
    }
