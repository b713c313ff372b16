"""Triton kernels for Taylor linear attention: its features are made on the chip and never stored.

A sequence is cut into segments of equal length, as many as fill the chip. A first kernel sums phi(k) v^T and phi(k)
over each segment; a second goes through each segment in chunks of C, with dense scores within a chunk and the running
sums in registers for all before it, starting from the sums of the segments before its own. One segment alone needs no
first kernel. The backward pass makes everything again: queries' gradients in the same order, keys' and values' in
reverse, with sums over the queries that come after.

Of the two that meet one is a reader, x = (q / sqrt(K), 1), and the other a writer, x' = (k, 1), so that 1 + s = x . x'
and w = ((1 + s)^2 + 1) / 2. A feature is the product of two elements of either, a square counting half with the reader:
no weights are rounded but by those powers of 2. Features come out of tensor cores as (x P) * (x P') with 0-1 matrices,
which is exact, and their gradients go back through the transposes. The sums of w need no features, since

    sum over s of w_ts = (x_t^T M x_t + n) / 2   with M = sum over s of x'_s x'_s^T of n tokens s.

A token and head take, forward: 4 F V operations for S, 8 F K for its features, 2 C (K + V) within the chunk, and the
keys' half of the former again where there are several segments; bytes are those of q, k, v and y, 2 (2 K + 2 V) in
bfloat16, and those of one state a segment. A step takes 4 F V operations, and reads and writes the state once.
"""

# Triton has no types for launches, nor for functions of kernels that return several tensors.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linear_attention import LinearAttentionState
from kernels.taylor_features import Features

PROGRAMS = 256
"""Sequences are cut into segments until there are so many programs, two for each processor of an H100."""

CHUNK = 64
FEATURES = 32
"""Positions a chunk, C, and features a block, BF."""

MOST_SEGMENTS = 16
"""More would spend more on adding up the segments before than they spare."""

DTYPES = {torch.float32, torch.bfloat16, torch.float16}

MOST_VALUES = 128
MOST_FEATURES = 576
"""V and F, this one up to K = 32; beyond, the running sum does not fit into registers."""


@triton.jit
def _rows(x_ptr, n, inside, stride, scale, K: tl.constexpr, BK: tl.constexpr):
    """x [C, BK]: K inputs times `scale`, a 1, and zeros; all zeros for rows that are not inside."""
    d = tl.arange(0, BK)
    x = tl.load(x_ptr + n[:, None] * stride + d[None, :], mask=inside[:, None] & (d < K)[None, :], other=0.0)
    one = (inside[:, None] & (d == K)[None, :]).to(tl.float32)
    return (x.to(tl.float32) * scale + one).to(x_ptr.dtype.element_ty)


@triton.jit
def _factors(x, P_ptr, first, second, i, BK: tl.constexpr, BF: tl.constexpr, PRECISION: tl.constexpr):
    """Both factors of block i of the features: [C, BK] -> [C, BF] each, in float32."""
    at = (i * BF + tl.arange(0, BF))[None, :] * BK + tl.arange(0, BK)[:, None]
    left = tl.dot(x, tl.load(P_ptr + first + at), input_precision=PRECISION)
    right = tl.dot(x, tl.load(P_ptr + second + at), input_precision=PRECISION)
    return left, right


@triton.jit
def _read(numT, x, S, P_ptr, BK: tl.constexpr, BF: tl.constexpr, BLOCKS: tl.constexpr, PRECISION: tl.constexpr):
    """Add the features of readers [C, BK] times S: numT [BV, C]."""
    for i in tl.static_range(BLOCKS):
        left, right = _factors(x, P_ptr, 2 * BLOCKS * BF * BK, BLOCKS * BF * BK, i, BK, BF, PRECISION)
        numT += tl.dot(S[i].to(x.dtype), (left * right).to(x.dtype).T, input_precision=PRECISION)
    return numT


@triton.jit
def _write(S, x, uT, P_ptr, BK: tl.constexpr, BF: tl.constexpr, BLOCKS: tl.constexpr, PRECISION: tl.constexpr):
    """Add u^T times the features of writers [C, BK] to each block [BV, BF]."""
    new = ()
    for i in tl.static_range(BLOCKS):
        left, right = _factors(x, P_ptr, 0, BLOCKS * BF * BK, i, BK, BF, PRECISION)
        phi = (left * right).to(x.dtype)
        new += (S[i] + tl.dot(uT, phi, input_precision=PRECISION),)
    return new


@triton.jit
def _gradient(
    dx, numT, x, S, u, P_ptr,
    BK: tl.constexpr, BF: tl.constexpr, BLOCKS: tl.constexpr, READS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the gradient of readers [C, BK] by that of their features, u S; and, where it `READS`, as `_read` does."""
    for i in tl.static_range(BLOCKS):
        left, right = _factors(x, P_ptr, 2 * BLOCKS * BF * BK, BLOCKS * BF * BK, i, BK, BF, PRECISION)
        kept = S[i].to(x.dtype)
        if READS:
            numT += tl.dot(kept, (left * right).to(x.dtype).T, input_precision=PRECISION)
        dphi = tl.dot(u, kept, input_precision=PRECISION)
        at = (i * BF + tl.arange(0, BF))[:, None] * BK + tl.arange(0, BK)[None, :]
        P_left, P_right = tl.load(P_ptr + 2 * BLOCKS * BF * BK + at), tl.load(P_ptr + BLOCKS * BF * BK + at)
        dx += tl.dot((dphi * right).to(x.dtype), P_left, input_precision=PRECISION)
        dx += tl.dot((dphi * left).to(x.dtype), P_right, input_precision=PRECISION)
    return dx, numT


@triton.jit
def _through(x, M, PRECISION: tl.constexpr):
    """x M [C, BK] in the precision of M, since all of a denominator hangs on it."""
    return tl.dot(x.to(tl.float32), M, input_precision="tf32" if PRECISION == "ieee" else PRECISION)


@triton.jit
def _load_state(
    S_ptr, z_ptr, first_S_ptr, first_z_ptr, place_ptr, weight_ptr, sequence, lo, hi, segments, v, F, V,
    BK: tl.constexpr, BF: tl.constexpr, BLOCKS: tl.constexpr, HAS_FIRST: tl.constexpr,
):  # fmt: skip
    """S^T [BV, BF] of each block and M [BK, BK]: what came first and the sums of segments lo .. hi - 1."""
    all_S = ()
    for i in tl.static_range(BLOCKS):
        f = i * BF + tl.arange(0, BF)
        at = f[None, :] * V + v[:, None]
        inside = (f < F)[None, :] & (v < V)[:, None]
        S = tl.zeros([v.shape[0], BF], tl.float32)
        if HAS_FIRST:
            S += tl.load(first_S_ptr + sequence * F * V + at, mask=inside, other=0.0).to(tl.float32)
        for segment in range(lo, hi):
            S += tl.load(S_ptr + (sequence * segments + segment) * F * V + at, mask=inside, other=0.0)
        all_S += (S / tl.load(weight_ptr + f, mask=f < F, other=1.0)[None, :],)
    d = tl.arange(0, BK)
    place = tl.load(place_ptr + d[:, None] * BK + d[None, :])
    there = place >= 0
    M = tl.zeros([BK, BK], tl.float32)
    if HAS_FIRST:
        M += tl.load(first_z_ptr + sequence * F + place, mask=there, other=0.0).to(tl.float32)
    for segment in range(lo, hi):
        M += tl.load(z_ptr + (sequence * segments + segment) * F + place, mask=there, other=0.0)
    return all_S, M / tl.load(weight_ptr + place, mask=there, other=1.0)


@triton.jit
def _store_state(
    S_ptr, z_ptr, place_ptr, weight_ptr, row, S, M, v, F, V, last,
    BK: tl.constexpr, BF: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """S and z as they are kept. `last`: whether these are the last of the values, with which z goes."""
    for i in tl.static_range(BLOCKS):
        f = i * BF + tl.arange(0, BF)
        at = S_ptr + row * F * V + f[None, :] * V + v[:, None]
        kept = S[i] * tl.load(weight_ptr + f, mask=f < F, other=0.0)[None, :]
        tl.store(at, kept.to(S_ptr.dtype.element_ty), mask=(f < F)[None, :] & (v < V)[:, None])
    d = tl.arange(0, BK)
    place = tl.load(place_ptr + d[:, None] * BK + d[None, :])
    once = (place >= 0) & (d[:, None] <= d[None, :]) & last
    kept = M * tl.load(weight_ptr + place, mask=place >= 0, other=0.0)
    tl.store(z_ptr + row * F + place, kept.to(z_ptr.dtype.element_ty), mask=once)


@triton.jit
def _segment_sums(
    x_ptr, u_ptr, e_ptr, P_ptr, place_ptr, weight_ptr, S_ptr, z_ptr,
    H, N, V, F, span, segments, xb, xh, xn, ub, uh, un,
    K: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, BF: tl.constexpr, BLOCKS: tl.constexpr,
    HAS_E: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums of phi(x) (u, e)^T over each segment, e being 1 where it is not given."""
    sequence = tl.program_id(0).to(tl.int64)
    segment = tl.program_id(1)
    v = tl.program_id(2) * BV + tl.arange(0, BV)
    x_ptr += sequence // H * xb + sequence % H * xh
    u_ptr += sequence // H * ub + sequence % H * uh
    S, M = _load_state(
        S_ptr, z_ptr, None, None, place_ptr, weight_ptr, sequence, 0, 0, segments, v, F, V, BK, BF, BLOCKS, False
    )
    for start in range(segment * span, tl.minimum((segment + 1) * span, N), C):
        n = start + tl.arange(0, C)
        inside = n < N
        x = _rows(x_ptr, n, inside, xn, 1.0, K, BK)
        uT = tl.load(u_ptr + n[None, :] * un + v[:, None], mask=inside[None, :] & (v < V)[:, None], other=0.0)
        S = _write(S, x, uT, P_ptr, BK, BF, BLOCKS, PRECISION)
        weighed = x
        if HAS_E:
            e = tl.load(e_ptr + sequence * N + n, mask=inside, other=0.0)
            weighed = (x.to(tl.float32) * e[:, None]).to(x.dtype)
        M += tl.dot(x.T, weighed, input_precision=PRECISION)
    last = tl.program_id(2) == tl.num_programs(2) - 1
    row = sequence * segments + segment
    _store_state(S_ptr, z_ptr, place_ptr, weight_ptr, row, S, M, v, F, V, last, BK, BF, BLOCKS)


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, P_ptr, place_ptr, weight_ptr, S_ptr, z_ptr, first_S_ptr, first_z_ptr, y_ptr, den_ptr,
    last_S_ptr, last_z_ptr, H, N, V, F, span, segments, qb, qh, qn, kb, kh, kn, vb, vh, vn, scale, eps,
    K: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, BF: tl.constexpr, BLOCKS: tl.constexpr,
    HAS_FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Outputs of a segment, the sums of similarities that they were divided by and, after the last, the state."""
    sequence = tl.program_id(0).to(tl.int64)
    segment = tl.program_id(1)
    v = tl.program_id(2) * BV + tl.arange(0, BV)
    last_values = tl.program_id(2) == tl.num_programs(2) - 1
    b, h = sequence // H, sequence % H
    q_ptr += b * qb + h * qh
    k_ptr += b * kb + h * kh
    v_ptr += b * vb + h * vh
    y_ptr += sequence * N * V
    S, M = _load_state(
        S_ptr, z_ptr, first_S_ptr, first_z_ptr, place_ptr, weight_ptr, sequence, 0, segment, segments, v, F, V,
        BK, BF, BLOCKS, HAS_FIRST,
    )  # fmt: skip
    count = _corner(M, K, BK)
    c = tl.arange(0, C)
    causal = c[:, None] >= c[None, :]
    for start in range(segment * span, tl.minimum((segment + 1) * span, N), C):
        n = start + c
        inside = n < N
        q = _rows(q_ptr, n, inside, qn, scale, K, BK)
        k = _rows(k_ptr, n, inside, kn, 1.0, K, BK)
        vT = tl.load(v_ptr + n[None, :] * vn + v[:, None], mask=inside[None, :] & (v < V)[:, None], other=0.0)
        s = tl.dot(q, k.T, input_precision=PRECISION)
        w = tl.where(causal, 0.5 * s * s + 0.5, 0.0)
        den = tl.sum(w, 1) + 0.5 * (tl.sum(_through(q, M, PRECISION) * q.to(tl.float32), 1) + count) + eps
        numT = tl.dot(vT, w.to(q.dtype).T, input_precision=PRECISION)
        numT = _read(numT, q, S, P_ptr, BK, BF, BLOCKS, PRECISION)
        yT = (numT / den[None, :]).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + n[None, :] * V + v[:, None], yT, mask=inside[None, :] & (v < V)[:, None])
        tl.store(den_ptr + sequence * N + n, den, mask=inside & last_values)
        S = _write(S, k, vT, P_ptr, BK, BF, BLOCKS, PRECISION)
        M += tl.dot(k.T, k, input_precision=PRECISION)
        count += C
    if segment == segments - 1:
        _store_state(
            last_S_ptr, last_z_ptr, place_ptr, weight_ptr, sequence, S, M, v, F, V, last_values, BK, BF, BLOCKS
        )


@triton.jit
def _corner(M, K: tl.constexpr, BK: tl.constexpr):
    """How many tokens M has seen, the product of the 1 with itself."""
    d = tl.arange(0, BK)
    return tl.sum(tl.sum(tl.where((d[:, None] == K) & (d[None, :] == K), M, 0.0), 1), 0)


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
    K: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, BF: tl.constexpr, BLOCKS: tl.constexpr,
    HAS_FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of a segment's queries, S and M made again."""
    sequence = tl.program_id(0).to(tl.int64)
    segment = tl.program_id(1)
    b, h = sequence // H, sequence % H
    q_ptr += b * qb + h * qh
    k_ptr += b * kb + h * kh
    v_ptr += b * vb + h * vh
    v, d, c = tl.arange(0, BV), tl.arange(0, BK), tl.arange(0, C)
    S, M = _load_state(
        S_ptr, z_ptr, first_S_ptr, first_z_ptr, place_ptr, weight_ptr, sequence, 0, segment, segments, v, F, V,
        BK, BF, BLOCKS, HAS_FIRST,
    )  # fmt: skip
    causal = c[:, None] >= c[None, :]
    for start in range(segment * span, tl.minimum((segment + 1) * span, N), C):
        n = start + c
        inside = n < N
        row = sequence * N + n
        q = _rows(q_ptr, n, inside, qn, scale, K, BK)
        k = _rows(k_ptr, n, inside, kn, 1.0, K, BK)
        vT = tl.load(v_ptr + n[None, :] * vn + v[:, None], mask=inside[None, :] & (v < V)[:, None], other=0.0)
        u = tl.load(u_ptr + row[:, None] * V + v[None, :], mask=inside[:, None] & (v < V)[None, :], other=0.0)
        e = tl.load(e_ptr + row, mask=inside, other=0.0)
        s = tl.dot(q, k.T, input_precision=PRECISION)
        dw = tl.dot(u, vT, input_precision=PRECISION) + e[:, None]
        ds = tl.where(causal, dw * s, 0.0)
        dq = tl.dot(ds.to(q.dtype), k, input_precision=PRECISION) + e[:, None] * _through(q, M, PRECISION)
        dq, _ = _gradient(dq, 0.0, q, S, u, P_ptr, BK, BF, BLOCKS, False, PRECISION)
        at = dq_ptr + row[:, None] * K + d[None, :]
        tl.store(at, (dq * scale).to(dq_ptr.dtype.element_ty), mask=inside[:, None] & (d < K)[None, :])
        S = _write(S, k, vT, P_ptr, BK, BF, BLOCKS, PRECISION)
        M += tl.dot(k.T, k, input_precision=PRECISION)


@triton.jit
def _keys_backward(
    q_ptr, k_ptr, v_ptr, u_ptr, e_ptr, P_ptr, place_ptr, weight_ptr, R_ptr, r_ptr, last_R_ptr, last_r_ptr,
    dk_ptr, dv_ptr, dS_ptr, dz_ptr, H, N, V, F, span, segments, qb, qh, qn, kb, kh, kn, vb, vh, vn, scale,
    K: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, BF: tl.constexpr, BLOCKS: tl.constexpr,
    HAS_FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of a segment's keys and values, last chunk first: keys read what the queries after them write."""
    sequence = tl.program_id(0).to(tl.int64)
    segment = tl.program_id(1)
    b, h = sequence // H, sequence % H
    q_ptr += b * qb + h * qh
    k_ptr += b * kb + h * kh
    v_ptr += b * vb + h * vh
    v, d, c = tl.arange(0, BV), tl.arange(0, BK), tl.arange(0, C)
    R, M = _load_state(
        R_ptr, r_ptr, last_R_ptr, last_r_ptr, place_ptr, weight_ptr, sequence, segment + 1, segments, segments, v, F, V,
        BK, BF, BLOCKS, HAS_FIRST,
    )  # fmt: skip
    later = c[:, None] <= c[None, :]  # keys down, queries across
    chunks = tl.cdiv(tl.minimum((segment + 1) * span, N) - segment * span, C)
    for i in range(chunks):
        n = segment * span + (chunks - 1 - i) * C + c
        inside = n < N
        row = sequence * N + n
        k = _rows(k_ptr, n, inside, kn, scale, K, BK)
        q = _rows(q_ptr, n, inside, qn, 1.0, K, BK)
        values = tl.load(v_ptr + n[:, None] * vn + v[None, :], mask=inside[:, None] & (v < V)[None, :], other=0.0)
        uT = tl.load(u_ptr + row[None, :] * V + v[:, None], mask=inside[None, :] & (v < V)[:, None], other=0.0)
        e = tl.load(e_ptr + row, mask=inside, other=0.0)
        s = tl.dot(k, q.T, input_precision=PRECISION)
        w = tl.where(later, 0.5 * s * s + 0.5, 0.0)  # of queries that are not inside, u and e are 0
        dvT = tl.dot(uT, w.to(k.dtype).T, input_precision=PRECISION)
        dw = tl.dot(values, uT, input_precision=PRECISION) + e[None, :]
        ds = tl.where(later, dw * s, 0.0)
        dk = tl.dot(ds.to(k.dtype), q, input_precision=PRECISION) + _through(k, M, PRECISION)
        dk, dvT = _gradient(dk, dvT, k, R, values, P_ptr, BK, BF, BLOCKS, True, PRECISION)
        at = dk_ptr + row[:, None] * K + d[None, :]
        tl.store(at, (dk * scale).to(dk_ptr.dtype.element_ty), mask=inside[:, None] & (d < K)[None, :])
        at = dv_ptr + row[None, :] * V + v[:, None]
        tl.store(at, dvT.to(dv_ptr.dtype.element_ty), mask=inside[None, :] & (v < V)[:, None])
        R = _write(R, q, uT, P_ptr, BK, BF, BLOCKS, PRECISION)
        M += tl.dot(q.T, (q.to(tl.float32) * e[:, None]).to(q.dtype), input_precision=PRECISION)
    if segment == 0:
        _store_state(dS_ptr, dz_ptr, place_ptr, weight_ptr, sequence, R, M, v, F, V, True, BK, BF, BLOCKS)


@triton.jit
def _step(
    q_ptr, k_ptr, v_ptr, table_ptr, weight_ptr, S_ptr, z_ptr, y_ptr,
    H, V, F, qb, qh, kb, kh, vb, vh, eps,
    K: tl.constexpr, BV: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """One token: S and z read once and written once, in place, BF features at a time."""
    sequence = tl.program_id(0).to(tl.int64)
    b, h = sequence // H, sequence % H
    v = tl.arange(0, BV)
    q_ptr += b * qb + h * qh
    k_ptr += b * kb + h * kh
    value = tl.load(v_ptr + b * vb + h * vh + v, mask=v < V, other=0.0).to(tl.float32)
    S_ptr += sequence * F * V
    z_ptr += sequence * F
    num = tl.zeros([BF, BV], tl.float32)
    den = tl.zeros([BF], tl.float32)
    for first in range(0, F, BF):
        f = first + tl.arange(0, BF)
        left = tl.load(table_ptr + f, mask=f < F, other=K)
        right = tl.load(table_ptr + F + f, mask=f < F, other=K)
        weight = tl.load(weight_ptr + f, mask=f < F, other=0.0)
        phi_q = tl.load(q_ptr + left, mask=left < K, other=1.0).to(tl.float32) * weight
        phi_q *= tl.load(q_ptr + right, mask=right < K, other=1.0).to(tl.float32)
        phi_k = tl.load(k_ptr + left, mask=left < K, other=1.0).to(tl.float32) * weight
        phi_k *= tl.load(k_ptr + right, mask=right < K, other=1.0).to(tl.float32)
        at = f[:, None] * V + v[None, :]
        inside = (f < F)[:, None] & (v < V)[None, :]
        S = tl.load(S_ptr + at, mask=inside, other=0.0).to(tl.float32) + phi_k[:, None] * value[None, :]
        z = tl.load(z_ptr + f, mask=f < F, other=0.0).to(tl.float32) + phi_k
        num += phi_q[:, None] * S
        den += phi_q * z
        tl.store(S_ptr + at, S.to(S_ptr.dtype.element_ty), mask=inside)
        tl.store(z_ptr + f, z.to(z_ptr.dtype.element_ty), mask=f < F)
    y = tl.sum(num, 0) / (tl.sum(den, 0) + eps)
    tl.store(y_ptr + sequence * V + v, y.to(y_ptr.dtype.element_ty), mask=v < V)


Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""y [B, H, N, V], S and z after all tokens, the sums that were divided by [B, H, N], S and z summed over segments."""


@torch.library.custom_op("recallbench::taylor_attention", mutates_args=())
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    S: Tensor | None,
    z: Tensor | None,
    P: Tensor,
    place: Tensor,
    weight: Tensor,
    eps: float,
) -> Outputs:
    q, k, v = _by_rows(q, k, v)
    S, z = (None if t is None else t.contiguous() for t in (S, z))
    y, last_S, last_z, den, sum_S, sum_z = _empty_outputs(q, v, S, weight)
    B, H, N, K = q.shape
    span = _span(q)
    segments = _ceil(N, span)
    blocks = _blocks(q, v, P)
    grid = (B * H, segments, _ceil(v.shape[-1], blocks["BV"]))
    sizes = (H, N, v.shape[-1], len(weight), span, segments)
    with torch.cuda.device_of(q):
        if segments > 1:
            strides = (*k.stride()[:3], *v.stride()[:3])
            _segment_sums[grid](k, v, None, P, place, weight, sum_S, sum_z, *sizes, *strides, HAS_E=False, **blocks)
        strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
        _forward[grid](
            q, k, v, P, place, weight, sum_S, sum_z, S, z, y, den, last_S, last_z, *sizes, *strides, K**-0.5, eps,
            HAS_FIRST=S is not None, **blocks,
        )  # fmt: skip
    return y, last_S, last_z, den, sum_S, sum_z


@_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    S: Tensor | None,
    z: Tensor | None,
    P: Tensor,
    place: Tensor,
    weight: Tensor,
    eps: float,
) -> Outputs:
    return _empty_outputs(q, v, S, weight)


Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Of q, k, v and, in float32, of S and z before the first token."""


@torch.library.custom_op("recallbench::taylor_attention_backward", mutates_args=())
def _gradients(
    q: Tensor, k: Tensor, v: Tensor, S: Tensor | None, z: Tensor | None,
    P: Tensor, place: Tensor, weight: Tensor, y: Tensor,
    den: Tensor, sum_S: Tensor, sum_z: Tensor, dy: Tensor, dlast_S: Tensor | None, dlast_z: Tensor | None,
) -> Gradients:  # fmt: skip
    q, k, v = _by_rows(q, k, v)
    S, z, dlast_S, dlast_z = (None if t is None else t.contiguous() for t in (S, z, dlast_S, dlast_z))
    dq, dk, dv, dS, dz = _empty_gradients(q, k, v, weight)
    (B, H, N, K), V = q.shape, v.shape[-1]
    span = _span(q)
    segments = _ceil(N, span)
    whole = max(16, triton.next_power_of_2(V))
    blocks = {**_blocks(q, v, P), "BV": whole}
    grid, sizes = (B * H, segments), (H, N, V, len(weight), span, segments)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], K**-0.5)
    u, e = torch.empty_like(y), torch.empty_like(den)
    later_S, later_z = torch.empty_like(sum_S), torch.empty_like(sum_z)
    with torch.cuda.device_of(q):
        _by_numerator[(_ceil(B * H * N, 32),)](y, den, dy.contiguous(), u, e, B * H * N, V, whole, 32)
        if segments > 1:
            _segment_sums[(*grid, 1)](
                q,
                u,
                e,
                P,
                place,
                weight,
                later_S,
                later_z,
                *sizes,
                *q.stride()[:3],
                *u.stride()[:3],
                HAS_E=True,
                **blocks,
            )
        _queries_backward[grid](
            q, k, v, u, e, P, place, weight, sum_S, sum_z, S, z, dq, *sizes, *strides, HAS_FIRST=S is not None, **blocks
        )
        _keys_backward[grid](
            q, k, v, u, e, P, place, weight, later_S, later_z, dlast_S, dlast_z, dk, dv, dS, dz, *sizes, *strides,
            HAS_FIRST=dlast_S is not None, **blocks,
        )  # fmt: skip
    return dq, dk, dv, dS, dz


@_gradients.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, S: Tensor | None, z: Tensor | None,
    P: Tensor, place: Tensor, weight: Tensor, y: Tensor,
    den: Tensor, sum_S: Tensor, sum_z: Tensor, dy: Tensor, dlast_S: Tensor | None, dlast_z: Tensor | None,
) -> Gradients:  # fmt: skip
    return _empty_gradients(q, k, v, weight)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    *tensors, _ = inputs
    y, _, _, den, sum_S, sum_z = output
    ctx.mark_non_differentiable(den, sum_S, sum_z)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, y, den, sum_S, sum_z)


def _backward(
    ctx: Any, dy: Tensor | None, dlast_S: Tensor | None, dlast_z: Tensor | None, *unused: None
) -> tuple[Tensor | None, ...]:
    q, k, v, S, z, P, place, weight, y, den, sum_S, sum_z = ctx.saved_tensors
    dy = torch.zeros_like(y) if dy is None else dy
    if (dlast_S is None) != (dlast_z is None):
        shape = (*q.shape[:2], len(weight))
        dlast_S = y.new_zeros(*shape, v.shape[-1]) if dlast_S is None else dlast_S
        dlast_z = y.new_zeros(shape) if dlast_z is None else dlast_z
    dq, dk, dv, dS, dz = _gradients(q, k, v, S, z, P, place, weight, y, den, sum_S, sum_z, dy, dlast_S, dlast_z)
    return (
        dq,
        dk,
        dv,
        None if S is None else dS.to(S.dtype),
        None if z is None else dz.to(z.dtype),
        None,
        None,
        None,
        None,
    )


_attention.register_autograd(_backward, setup_context=_save)


@_attention.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Outputs, tuple[int, ...]]:
    """Members are so many more sequences."""
    *tensors, P, place, weight, eps = args
    merged = [
        None if t is None else (t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)
        for t, dim in zip(tensors, in_dims, strict=False)
    ]
    y, last_S, last_z, den, sum_S, sum_z = (
        t.unflatten(0, (info.batch_size, -1)) for t in _attention(*merged, P, place, weight, eps)
    )
    return (y, last_S, last_z, den, sum_S, sum_z), 6 * (0,)


def fused_taylor_attention(
    q: Tensor, k: Tensor, v: Tensor, state: LinearAttentionState | None, features: Features, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`kernels.taylor_attention.taylor_attention` on a GPU: outputs, S and z, for any strides, sums in float32.

    **Raises** `ValueError` where shapes, dtypes or devices do not fit together.
    """
    S, z = (None, None) if state is None else state
    _check(q, k, v, S, z)
    return _attention(q, k, v, S, z, *_tables(features, q.device, q.dtype)[:3], eps)[:3]


@torch.library.custom_op("recallbench::taylor_attention_step", mutates_args={"S", "z"})
def _decode(q: Tensor, k: Tensor, v: Tensor, S: Tensor, z: Tensor, table: Tensor, weight: Tensor, eps: float) -> Tensor:
    q, k, v = _by_rows(q, k, v)
    (B, H, K), V = q.shape, v.shape[-1]
    y = v.new_empty(B, H, V)
    with torch.cuda.device_of(q):
        _step[(B * H,)](
            q, k, v, table, weight, S, z, y, H, V, len(weight), *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], eps,
            K, triton.next_power_of_2(V), 32, num_warps=4,
        )  # fmt: skip
    return y


@_decode.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, S: Tensor, z: Tensor, table: Tensor, weight: Tensor, eps: float) -> Tensor:
    return v.new_empty(v.shape)


def fused_taylor_step(
    q: Tensor, k: Tensor, v: Tensor, state: LinearAttentionState, features: Features, eps: float
) -> Tensor:
    """`kernels.taylor_attention.taylor_attention_step` on a GPU: the output, the state updated in place.

    **Raises** `ValueError` where shapes, dtypes or devices do not fit together, or the state is not contiguous.
    """
    _check(q.unsqueeze(2), k.unsqueeze(2), v.unsqueeze(2), *state)
    if not (state.S.is_contiguous() and state.z.is_contiguous()):
        raise ValueError("taylor_attention_step got a state that is not contiguous, and updates it in place")
    _, _, weight, table = _tables(features, q.device, q.dtype)
    return _decode(q, k, v, *state, table, weight, eps)


def fuses(q: Tensor, k: Tensor, v: Tensor, state: LinearAttentionState | None) -> bool:
    """Whether the kernels serve: on a GPU, not in float64, with a running sum that fits into registers."""
    kinds = {t.dtype for t in (q, k, v, *(state or ()))}
    fit = _feature_count(q.shape[-1]) <= MOST_FEATURES and v.shape[-1] <= MOST_VALUES
    return q.is_cuda and kinds <= DTYPES and fit and v.numel() > 0


def _check(q: Tensor, k: Tensor, v: Tensor, S: Tensor | None, z: Tensor | None) -> None:
    if q.ndim != 4 or v.ndim != 4:
        raise ValueError(
            f"taylor_attention takes q [B, H, N, K] and v [B, H, N, V], not {list(q.shape)} and {list(v.shape)}"
        )
    (B, H, N, K), V = q.shape, v.shape[-1]
    F = _feature_count(K)
    shapes = {"k": (B, H, N, K), "v": (B, H, N, V), "S": (B, H, F, V), "z": (B, H, F)}
    for (name, shape), t in zip(shapes.items(), (k, v, S, z), strict=True):
        if t is None:
            continue
        if t.shape != shape:
            raise ValueError(
                f"taylor_attention got {name} {list(t.shape)}, and takes {list(shape)} with q {list(q.shape)}"
            )
        if name in {"k", "v"} and t.dtype != q.dtype:
            raise ValueError(f"taylor_attention got q in {q.dtype} and {name} in {t.dtype}, and takes one dtype")
        if t.device != q.device:
            raise ValueError(f"taylor_attention got q on {q.device} and {name} on {t.device}, and takes one device")
    if q.dtype not in DTYPES:
        raise ValueError(f"taylor_attention got q in {q.dtype}, and its kernels take float32, bfloat16 or float16")
    if F > MOST_FEATURES or V > MOST_VALUES:
        raise ValueError(f"taylor_attention got K = {K} and V = {V}, and its kernels take K <= 32 and V <= 128")


def _feature_count(K: int) -> int:
    return 1 + K + K * (K + 1) // 2


def _ceil(count: int, size: int) -> int:
    return -(-count // size)


def _by_rows(*tensors: Tensor) -> list[Tensor]:
    """Any strides but the last, which is 1."""
    return [t if t.stride(-1) == 1 else t.contiguous() for t in tensors]


def _empty_outputs(q: Tensor, v: Tensor, S: Tensor | None, weight: Tensor) -> Outputs:
    (B, H, N, _), V, F = q.shape, v.shape[-1], len(weight)
    kind = torch.float32 if S is None else S.dtype
    segments = _ceil(N, _span(q))
    several = segments if segments > 1 else 0
    return (
        v.new_empty(v.shape),
        v.new_empty(B, H, F, V, dtype=kind),
        v.new_empty(B, H, F, dtype=kind),
        v.new_empty(B, H, N, dtype=torch.float32),
        v.new_empty(B, H, several, F, V, dtype=torch.float32),
        v.new_empty(B, H, several, F, dtype=torch.float32),
    )


def _empty_gradients(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Gradients:
    shape = (*q.shape[:2], len(weight))
    dS, dz = (q.new_empty(*shape, *more, dtype=torch.float32) for more in (v.shape[-1:], ()))
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dS, dz


def _span(q: Tensor) -> int:
    """Positions a segment, whole chunks."""
    B, H, N, _ = q.shape
    chunks = _ceil(N, CHUNK)
    segments = min(max(1, PROGRAMS // (B * H)), chunks, MOST_SEGMENTS)
    return _ceil(chunks, segments) * CHUNK


def _blocks(q: Tensor, v: Tensor, P: Tensor) -> dict[str, Any]:
    """Block sizes and the compiler's options."""
    K, (_, F, BK) = q.shape[-1], P.shape
    values = 64 if F <= 160 else 32 if F <= 384 else 16  # so that S takes no more than half of the registers
    return {
        "K": K,
        "BK": BK,
        "BV": max(16, min(triton.next_power_of_2(v.shape[-1]), values)),
        "C": CHUNK,
        "BF": FEATURES,
        "BLOCKS": F // FEATURES,
        "PRECISION": "tf32x3" if q.dtype == torch.float32 else "ieee",
        "num_warps": 4,
        "num_stages": 1,  # two programs a processor hide more than loading ahead would, for which P takes the room
    }


@cache
def _tables(features: Features, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the kernels know of the features.

    P [3, F, BK], F up to whole blocks: for each feature a 1 in the place of its left factor, its right factor, and its
    left factor again, where a square counts half. `place` [BK, BK]: which feature, or -1, is the product of two inputs.
    Weights [F]. Indices [2, F].
    """
    left, right, weight = features
    F, K = len(weight), int(left.max())
    BK = max(16, triton.next_power_of_2(K + 1))
    f = torch.arange(F)
    P = torch.zeros(3, _ceil(F, FEATURES) * FEATURES, BK, dtype=dtype)
    P[0, f, left] = P[1, f, right] = P[2, f, left] = 1
    P[2, f[(left == right) & (left < K)]] /= 2
    place = torch.full((BK, BK), -1, dtype=torch.int32)
    place[left, right] = place[right, left] = f.int()
    tables = P, place, weight.float(), torch.stack([left, right]).int()
    return tuple(t.to(device) for t in tables)  # pyright: ignore[reportReturnType]
