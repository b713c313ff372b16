"""Triton kernels for Taylor linear attention: its features are made on the chip and never stored.

A sequence is cut into segments of equal length, as many as fill the chip. A first kernel sums phi(k) v^T and phi(k)
over each segment; a second goes through each segment in chunks of C, with dense scores within a chunk and the running
sums in registers for all before it, starting from the sums of the segments before its own. One segment alone needs no
first kernel. The backward pass makes everything again: queries' gradients in the same order, keys' and values' in
reverse, with sums over the queries that come after.

A token and head take, forward: 4 F V operations for S, 8 F K for its features, 2 C (K + V) within the chunk, and the
keys' half of the former again where there are several segments; bytes are those of q, k, v and y, 2 (2 K + 2 V) in
bfloat16, and those of one state a segment. Beyond K = 16 the features are cut into parts, since a program that held the
sums of all would spill them; what the parts add to y, dq, dk and dv is in float32 and added up after, 8 V bytes each
forward and 16 K + 8 V backward.
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
    FEATURES,
    by_rows,
    ceil,
    check,
    corner,
    gradient,
    load_state,
    parts,
    read,
    rows,
    store_state,
    tables,
    through,
    write,
)

PROGRAMS = 256
"""Sequences are cut into segments until there are so many programs, two for each processor of an H100."""

CHUNK = 64
"""Positions a chunk, C."""

MOST_SEGMENTS = 16
"""More would spend more on adding up the segments before than they spare."""


@triton.jit
def _segment_sums(
    x_ptr, u_ptr, e_ptr, P_ptr, place_ptr, weight_ptr, S_ptr, z_ptr,
    H, N, V, F, span, segments, skipped, xb, xh, xn, ub, uh, un,
    K: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, BF: tl.constexpr, ROWS: tl.constexpr,
    BLOCKS: tl.constexpr, PARTS: tl.constexpr, HAS_E: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums of one part of phi(x), (u, e)^T times, over each segment but those skipped; e is 1 where it is not given."""
    sequence = tl.program_id(0).to(tl.int64)
    segment = skipped + tl.program_id(1)
    part = tl.program_id(2) % PARTS
    base = part * BLOCKS
    P_ptr += base * BF * BK
    v = tl.program_id(2) // PARTS * BV + tl.arange(0, BV)
    x_ptr += sequence // H * xb + sequence % H * xh
    u_ptr += sequence // H * ub + sequence % H * uh
    S, M = load_state(
        S_ptr, z_ptr, None, None, place_ptr, weight_ptr, sequence, 0, 0, segments, base, v, F, V, BK, BF, BLOCKS, False
    )
    for start in range(segment * span, tl.minimum((segment + 1) * span, N), C):
        n = start + tl.arange(0, C)
        inside = n < N
        x = rows(x_ptr, n, inside, xn, 1.0, K, BK)
        uT = tl.load(u_ptr + n[None, :] * un + v[:, None], mask=inside[None, :] & (v < V)[:, None], other=0.0)
        S = write(S, x, uT, P_ptr, BK, BF, ROWS, BLOCKS, PRECISION)
        weighed = x
        if HAS_E:
            e = tl.load(e_ptr + sequence * N + n, mask=inside, other=0.0)
            weighed = (x.to(tl.float32) * e[:, None]).to(x.dtype)
        M += tl.dot(x.T, weighed, input_precision=PRECISION)
    first = tl.program_id(2) == 0
    row = sequence * segments + segment
    store_state(S_ptr, z_ptr, place_ptr, weight_ptr, row, S, M, base, v, F, V, first, BK, BF, BLOCKS)


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, P_ptr, place_ptr, weight_ptr, S_ptr, z_ptr, first_S_ptr, first_z_ptr, y_ptr, den_ptr,
    last_S_ptr, last_z_ptr, H, N, V, F, span, segments, qb, qh, qn, kb, kh, kn, vb, vh, vn, scale, eps,
    K: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, BF: tl.constexpr, ROWS: tl.constexpr,
    BLOCKS: tl.constexpr, PARTS: tl.constexpr, HAS_FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Outputs of a segment, the sums of similarities that they are divided by and, after the last, the state.

    Where there are several parts of the features, what each adds to the outputs, which are then not divided yet.
    """
    sequence = tl.program_id(0).to(tl.int64)
    segment = tl.program_id(1)
    part = tl.program_id(2) % PARTS
    base = part * BLOCKS
    P_ptr += base * BF * BK
    v = tl.program_id(2) // PARTS * BV + tl.arange(0, BV)
    first = tl.program_id(2) == 0
    b, h = sequence // H, sequence % H
    q_ptr += b * qb + h * qh
    k_ptr += b * kb + h * kh
    v_ptr += b * vb + h * vh
    y_ptr += (part.to(tl.int64) * tl.num_programs(0) + sequence) * N * V
    S, M = load_state(
        S_ptr, z_ptr, first_S_ptr, first_z_ptr, place_ptr, weight_ptr, sequence, 0, segment, segments, base, v, F, V,
        BK, BF, BLOCKS, HAS_FIRST,
    )  # fmt: skip
    count = corner(M, K, BK)
    c = tl.arange(0, C)
    causal = c[:, None] >= c[None, :]
    for start in range(segment * span, tl.minimum((segment + 1) * span, N), C):
        n = start + c
        inside = n < N
        q = rows(q_ptr, n, inside, qn, scale, K, BK)
        k = rows(k_ptr, n, inside, kn, 1.0, K, BK)
        vT = tl.load(v_ptr + n[None, :] * vn + v[:, None], mask=inside[None, :] & (v < V)[:, None], other=0.0)
        numT = tl.zeros([BV, C], tl.float32)
        if PARTS == 1 or part == 0:
            s = tl.dot(q, k.T, input_precision=PRECISION)
            w = tl.where(causal, 0.5 * s * s + 0.5, 0.0)
            den = tl.sum(w, 1) + 0.5 * (tl.sum(through(q, M, PRECISION) * q.to(tl.float32), 1) + count) + eps
            numT = tl.dot(vT, w.to(q.dtype).T, input_precision=PRECISION)
            tl.store(den_ptr + sequence * N + n, den, mask=inside & first)
        numT = read(numT, q, S, P_ptr, BK, BF, ROWS, BLOCKS, PRECISION)
        if PARTS == 1:
            numT /= den[None, :]
        tl.store(
            y_ptr + n[None, :] * V + v[:, None],
            numT.to(y_ptr.dtype.element_ty),
            mask=inside[None, :] & (v < V)[:, None],
        )
        S = write(S, k, vT, P_ptr, BK, BF, ROWS, BLOCKS, PRECISION)
        M += tl.dot(k.T, k, input_precision=PRECISION)
        count += C
    if segment == segments - 1:
        store_state(last_S_ptr, last_z_ptr, place_ptr, weight_ptr, sequence, S, M, base, v, F, V, first, BK, BF, BLOCKS)


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
    q_ptr, k_ptr, v_ptr, u_ptr, e_ptr, P_ptr, place_ptr, weight_ptr, S_ptr, z_ptr, first_S_ptr, first_z_ptr, dq_ptr,
    H, N, V, F, span, segments, qb, qh, qn, kb, kh, kn, vb, vh, vn, scale,
    K: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, BF: tl.constexpr, ROWS: tl.constexpr,
    BLOCKS: tl.constexpr, PARTS: tl.constexpr, HAS_FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of a segment's queries by one part of the features, S and M made again."""
    sequence, part = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    segment = tl.program_id(1)
    base = tl.program_id(2) * BLOCKS
    P_ptr += base * BF * BK
    dq_ptr += part * tl.num_programs(0) * N * K
    b, h = sequence // H, sequence % H
    q_ptr += b * qb + h * qh
    k_ptr += b * kb + h * kh
    v_ptr += b * vb + h * vh
    v, d, c = tl.arange(0, BV), tl.arange(0, BK), tl.arange(0, C)
    S, M = load_state(
        S_ptr, z_ptr, first_S_ptr, first_z_ptr, place_ptr, weight_ptr, sequence, 0, segment, segments, base, v, F, V,
        BK, BF, BLOCKS, HAS_FIRST,
    )  # fmt: skip
    causal = c[:, None] >= c[None, :]
    for start in range(segment * span, tl.minimum((segment + 1) * span, N), C):
        n = start + c
        inside = n < N
        row = sequence * N + n
        q = rows(q_ptr, n, inside, qn, scale, K, BK)
        k = rows(k_ptr, n, inside, kn, 1.0, K, BK)
        vT = tl.load(v_ptr + n[None, :] * vn + v[:, None], mask=inside[None, :] & (v < V)[:, None], other=0.0)
        u = tl.load(u_ptr + row[:, None] * V + v[None, :], mask=inside[:, None] & (v < V)[None, :], other=0.0)
        e = tl.load(e_ptr + row, mask=inside, other=0.0)
        dq = tl.zeros([C, BK], tl.float32)
        if PARTS == 1 or part == 0:
            s = tl.dot(q, k.T, input_precision=PRECISION)
            dw = tl.dot(u, vT, input_precision=PRECISION) + e[:, None]
            ds = tl.where(causal, dw * s, 0.0)
            dq = tl.dot(ds.to(q.dtype), k, input_precision=PRECISION) + e[:, None] * through(q, M, PRECISION)
        dq, _ = gradient(dq, 0.0, q, S, u, P_ptr, BK, BF, ROWS, BLOCKS, False, PRECISION)
        at = dq_ptr + row[:, None] * K + d[None, :]
        tl.store(at, (dq * scale).to(dq_ptr.dtype.element_ty), mask=inside[:, None] & (d < K)[None, :])
        S = write(S, k, vT, P_ptr, BK, BF, ROWS, BLOCKS, PRECISION)
        M += tl.dot(k.T, k, input_precision=PRECISION)


@triton.jit
def _keys_backward(
    q_ptr, k_ptr, v_ptr, u_ptr, e_ptr, P_ptr, place_ptr, weight_ptr, R_ptr, r_ptr, last_R_ptr, last_r_ptr,
    dk_ptr, dv_ptr, dS_ptr, dz_ptr, H, N, V, F, span, segments, qb, qh, qn, kb, kh, kn, vb, vh, vn, scale,
    K: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, BF: tl.constexpr, ROWS: tl.constexpr,
    BLOCKS: tl.constexpr, PARTS: tl.constexpr, HAS_FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of a segment's keys and values by one part of the features.

    Last chunk first: keys read what the queries after them write.
    """
    sequence, part = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    segment = tl.program_id(1)
    base = tl.program_id(2) * BLOCKS
    P_ptr += base * BF * BK
    dk_ptr += part * tl.num_programs(0) * N * K
    dv_ptr += part * tl.num_programs(0) * N * V
    b, h = sequence // H, sequence % H
    q_ptr += b * qb + h * qh
    k_ptr += b * kb + h * kh
    v_ptr += b * vb + h * vh
    v, d, c = tl.arange(0, BV), tl.arange(0, BK), tl.arange(0, C)
    R, M = load_state(
        R_ptr, r_ptr, last_R_ptr, last_r_ptr, place_ptr, weight_ptr, sequence, segment + 1, segments, segments, base,
        v, F, V, BK, BF, BLOCKS, HAS_FIRST,
    )  # fmt: skip
    later = c[:, None] <= c[None, :]  # keys down, queries across
    chunks = tl.cdiv(tl.minimum((segment + 1) * span, N) - segment * span, C)
    for i in range(chunks):
        n = segment * span + (chunks - 1 - i) * C + c
        inside = n < N
        row = sequence * N + n
        k = rows(k_ptr, n, inside, kn, scale, K, BK)
        q = rows(q_ptr, n, inside, qn, 1.0, K, BK)
        values = tl.load(v_ptr + n[:, None] * vn + v[None, :], mask=inside[:, None] & (v < V)[None, :], other=0.0)
        uT = tl.load(u_ptr + row[None, :] * V + v[:, None], mask=inside[None, :] & (v < V)[:, None], other=0.0)
        e = tl.load(e_ptr + row, mask=inside, other=0.0)
        dk, dvT = tl.zeros([C, BK], tl.float32), tl.zeros([BV, C], tl.float32)
        if PARTS == 1 or part == 0:
            s = tl.dot(k, q.T, input_precision=PRECISION)
            w = tl.where(later, 0.5 * s * s + 0.5, 0.0)  # of queries that are not inside, u and e are 0
            dvT = tl.dot(uT, w.to(k.dtype).T, input_precision=PRECISION)
            dw = tl.dot(values, uT, input_precision=PRECISION) + e[None, :]
            ds = tl.where(later, dw * s, 0.0)
            dk = tl.dot(ds.to(k.dtype), q, input_precision=PRECISION) + through(k, M, PRECISION)
        dk, dvT = gradient(dk, dvT, k, R, values, P_ptr, BK, BF, ROWS, BLOCKS, True, PRECISION)
        at = dk_ptr + row[:, None] * K + d[None, :]
        tl.store(at, (dk * scale).to(dk_ptr.dtype.element_ty), mask=inside[:, None] & (d < K)[None, :])
        at = dv_ptr + row[None, :] * V + v[:, None]
        tl.store(at, dvT.to(dv_ptr.dtype.element_ty), mask=inside[None, :] & (v < V)[:, None])
        R = write(R, q, uT, P_ptr, BK, BF, ROWS, BLOCKS, PRECISION)
        M += tl.dot(q.T, (q.to(tl.float32) * e[:, None]).to(q.dtype), input_precision=PRECISION)
    if segment == 0:
        store_state(dS_ptr, dz_ptr, place_ptr, weight_ptr, sequence, R, M, base, v, F, V, part == 0, BK, BF, BLOCKS)


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
    P, place, weight, _ = tables(K, q.device, q.dtype)
    blocks = _blocks(K, v.shape[-1], q.dtype)
    count = blocks["PARTS"]
    grid = (B * H, segments, ceil(v.shape[-1], blocks["BV"]) * count)
    num = y if count == 1 else y.new_empty(count, *y.shape, dtype=torch.float32)
    sizes = (H, N, v.shape[-1], len(weight), span, segments)
    with torch.cuda.device_of(q):
        if segments > 1:
            strides = (*k.stride()[:3], *v.stride()[:3])
            _segment_sums[(B * H, segments - 1, grid[-1])](  # the last is before no other
                k, v, None, P, place, weight, sum_S, sum_z, *sizes, 0, *strides, HAS_E=False, **blocks
            )
        strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
        _forward[grid](
            q, k, v, P, place, weight, sum_S, sum_z, S, z, num, den, last_S, last_z, *sizes, *strides, K**-0.5, eps,
            HAS_FIRST=S is not None, **blocks,
        )  # fmt: skip
    if count > 1:
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
    P, place, weight, _ = tables(K, q.device, q.dtype)
    span = _span(q)
    segments = ceil(N, span)
    blocks = _blocks(K, V, q.dtype)
    whole = max(16, triton.next_power_of_2(V))
    all_values = {**blocks, "BV": whole, "num_warps": 8 if whole > 64 else 4}
    grid, sizes = (B * H, segments), (H, N, V, len(weight), span, segments)
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
                q, u, e, P, place, weight, later_S, later_z, *sizes, 1, *of_q_and_u, HAS_E=True, **blocks
            )
        grid = (*grid, count)
        _queries_backward[grid](
            q,
            k,
            v,
            u,
            e,
            P,
            place,
            weight,
            sum_S,
            sum_z,
            S,
            z,
            dq,
            *sizes,
            *strides,
            HAS_FIRST=S is not None,
            **all_values,
        )
        _keys_backward[grid](
            q, k, v, u, e, P, place, weight, later_S, later_z, dlast_S, dlast_z, dk, dv, dS, dz, *sizes, *strides,
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
    chunks = ceil(N, CHUNK)
    segments = min(max(1, PROGRAMS // (B * H)), chunks, MOST_SEGMENTS)
    return ceil(chunks, segments) * CHUNK


def _blocks(K: int, V: int, dtype: torch.dtype) -> dict[str, Any]:
    """Block sizes and the compiler's options: of S, a program holds as much as takes half of the registers."""
    count, blocks = parts(K)
    return {
        "K": K,
        "BK": max(16, triton.next_power_of_2(K + 1)),
        "BV": max(16, min(triton.next_power_of_2(V), 64)),
        "C": CHUNK,
        "BF": FEATURES,
        "ROWS": count * blocks * FEATURES,
        "BLOCKS": blocks,
        "PARTS": count,
        "PRECISION": "tf32x3" if dtype == torch.float32 else "ieee",
        "num_warps": 4,
        "num_stages": 1,  # two programs a processor hide more than loading ahead would, for which P takes the room
    }
