"""Triton kernels for Taylor linear attention: its features are made on the chip and never stored.

A sequence is cut into segments of equal length, as many as fill the chip. A first kernel sums phi(k) (v, 1)^T over each
segment; a second goes through each segment in chunks of C, with dense scores within a chunk and the running sum S in
registers for all before it, starting from the sum of the segments before its own. One segment alone needs no first
kernel. The backward pass makes everything again: queries' gradients in the same order, keys' and values' in reverse,
with the sum R of phi(q) dy^T over what comes after.

Features come out of tensor cores: with 0-1 matrices P, phi(x) = w * (x P_left) * (x P_right), which is exact, leaves
them in the registers where the next product takes them from, and gives their gradient as products with the transposes.

A token and head take, forward: 4 F V operations for S, 8 K F for its features, 2 C (K + V) within the chunk, and the
keys' half of the former again where there are several segments; bytes are those of q, k, v and y, 2 (2 K + 2 V) in
bfloat16, and those of one state a segment. A step takes 4 F V operations, and reads and writes the state once.
"""

# Triton has no types for launches, nor for functions of kernels that return several tensors.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

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
"""Positions a chunk, C."""

MOST_SEGMENTS = 16
"""More would spend more on adding up the segments before than they spare."""

DTYPES = {torch.float32, torch.bfloat16, torch.float16}

MOST_VALUES = 128
MOST_FEATURES = 576
"""V and F, this one up to K = 32; beyond, the running sum does not fit into registers."""


@triton.jit
def _selections(
    table_ptr, weight_ptr, first, F, K: tl.constexpr, BK: tl.constexpr, BF: tl.constexpr, dtype: tl.constexpr
):
    """For features first .. first + BF: the matrices P [BK, BF], where they lack a 1, and weights [BF]."""
    f = first + tl.arange(0, BF)
    left = tl.load(table_ptr + f, mask=f < F, other=K)
    right = tl.load(table_ptr + F + f, mask=f < F, other=K)
    weight = tl.load(weight_ptr + f, mask=f < F, other=0.0)
    x = tl.arange(0, BK)
    P_left = ((x[:, None] == left[None, :]) & (left < K)[None, :]).to(dtype)
    P_right = ((x[:, None] == right[None, :]) & (right < K)[None, :]).to(dtype)
    return P_left, P_right, (left == K).to(tl.float32), (right == K).to(tl.float32), weight


@triton.jit
def _halves(x, P_left, P_right, one_left, one_right, PRECISION: tl.constexpr):
    """Both factors of the features of rows: [C, BK] -> [C, BF] each, in float32."""
    left = tl.dot(x, P_left, input_precision=PRECISION) + one_left[None, :]
    right = tl.dot(x, P_right, input_precision=PRECISION) + one_right[None, :]
    return left, right


@triton.jit
def _read(num, den, x, S, z, P_left, P_right, one_left, one_right, weight, PRECISION: tl.constexpr):
    """Add phi(x) S [C, BV] and phi(x) z [C]."""
    left, right = _halves(x, P_left, P_right, one_left, one_right, PRECISION)
    phi = left * right * weight[None, :]
    num += tl.dot(phi.to(x.dtype), S.to(x.dtype), input_precision=PRECISION)
    den += tl.sum(phi * z[None, :], 1)
    return num, den


@triton.jit
def _write(S, z, xT, u, e, P_left, P_right, one_left, one_right, weight, PRECISION: tl.constexpr):
    """Add phi(x)^T u [BF, BV] and phi(x)^T e [BF] of columns xT [BK, C]."""
    left = tl.dot(P_left.T, xT, input_precision=PRECISION) + one_left[:, None]
    right = tl.dot(P_right.T, xT, input_precision=PRECISION) + one_right[:, None]
    phi = left * right * weight[:, None]
    S += tl.dot(phi.to(u.dtype), u, input_precision=PRECISION)
    z += tl.sum(phi * e[None, :], 1)
    return S, z


@triton.jit
def _gradient(dx, x, S, z, u, e, P_left, P_right, one_left, one_right, weight, PRECISION: tl.constexpr):
    """Add the gradient of rows x [C, BK] by their features', u S^T + e z^T."""
    dphi = tl.dot(u, S.to(u.dtype).T, input_precision=PRECISION) + e[:, None] * z[None, :]
    dphi *= weight[None, :]
    left, right = _halves(x, P_left, P_right, one_left, one_right, PRECISION)
    dx += tl.dot((dphi * right).to(x.dtype), P_left.T, input_precision=PRECISION)
    dx += tl.dot((dphi * left).to(x.dtype), P_right.T, input_precision=PRECISION)
    return dx


@triton.jit
def _load_state(
    S_ptr, z_ptr, first_S_ptr, first_z_ptr, sequence, lo, hi, segments, first, v, F, V,
    BF: tl.constexpr, HAS_FIRST: tl.constexpr,
):  # fmt: skip
    """S [BF, BV] and z [BF] for features from `first`: those that came first and the sums of segments lo .. hi - 1."""
    f = first + tl.arange(0, BF)
    at = f[:, None] * V + v[None, :]
    inside = (f < F)[:, None] & (v < V)[None, :]
    S = tl.zeros([BF, v.shape[0]], tl.float32)
    z = tl.zeros([BF], tl.float32)
    if HAS_FIRST:
        S += tl.load(first_S_ptr + sequence * F * V + at, mask=inside, other=0.0).to(tl.float32)
        z += tl.load(first_z_ptr + sequence * F + f, mask=f < F, other=0.0).to(tl.float32)
    for segment in range(lo, hi):
        row = sequence * segments + segment
        S += tl.load(S_ptr + row * F * V + at, mask=inside, other=0.0)
        z += tl.load(z_ptr + row * F + f, mask=f < F, other=0.0)
    return S, z


@triton.jit
def _store_state(S_ptr, z_ptr, row, S, z, first, v, F, V, last, BF: tl.constexpr):
    """`last`: whether these are the last of the values, with which z goes."""
    f = first + tl.arange(0, BF)
    at = S_ptr + row * F * V + f[:, None] * V + v[None, :]
    tl.store(at, S.to(S_ptr.dtype.element_ty), mask=(f < F)[:, None] & (v < V)[None, :])
    tl.store(z_ptr + row * F + f, z.to(z_ptr.dtype.element_ty), mask=(f < F) & last)


@triton.jit
def _segment_sums(
    x_ptr, u_ptr, e_ptr, table_ptr, weight_ptr, S_ptr, z_ptr,
    H, N, V, F, span, segments, xb, xh, xn, ub, uh, un,
    K: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, F1: tl.constexpr, F2: tl.constexpr,
    HAS_E: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums of phi(x) (u, e)^T over each segment, e being 1 where it is not given."""
    sequence = tl.program_id(0).to(tl.int64)
    segment = tl.program_id(1)
    v = tl.program_id(2) * BV + tl.arange(0, BV)
    x_ptr += sequence // H * xb + sequence % H * xh
    u_ptr += sequence // H * ub + sequence % H * uh
    d = tl.arange(0, BK)
    dtype = x_ptr.dtype.element_ty
    A1, B1, a1, b1, w1 = _selections(table_ptr, weight_ptr, 0, F, K, BK, F1, dtype)
    S1, z1 = tl.zeros([F1, BV], tl.float32), tl.zeros([F1], tl.float32)
    if F2 > 0:
        A2, B2, a2, b2, w2 = _selections(table_ptr, weight_ptr, F1, F, K, BK, F2, dtype)
        S2, z2 = tl.zeros([F2, BV], tl.float32), tl.zeros([F2], tl.float32)
    for start in range(segment * span, tl.minimum((segment + 1) * span, N), C):
        n = start + tl.arange(0, C)
        inside = n < N
        xT = tl.load(x_ptr + n[None, :] * xn + d[:, None], mask=inside[None, :] & (d < K)[:, None], other=0.0)
        u = tl.load(u_ptr + n[:, None] * un + v[None, :], mask=inside[:, None] & (v < V)[None, :], other=0.0)
        e = tl.load(e_ptr + sequence * N + n, mask=inside, other=0.0) if HAS_E else inside.to(tl.float32)
        S1, z1 = _write(S1, z1, xT, u, e, A1, B1, a1, b1, w1, PRECISION)
        if F2 > 0:
            S2, z2 = _write(S2, z2, xT, u, e, A2, B2, a2, b2, w2, PRECISION)
    row = sequence * segments + segment
    last = tl.program_id(2) == tl.num_programs(2) - 1
    _store_state(S_ptr, z_ptr, row, S1, z1, 0, v, F, V, last, F1)
    if F2 > 0:
        _store_state(S_ptr, z_ptr, row, S2, z2, F1, v, F, V, last, F2)


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, table_ptr, weight_ptr, S_ptr, z_ptr, first_S_ptr, first_z_ptr, y_ptr, den_ptr, last_S_ptr,
    last_z_ptr,
    H, N, V, F, span, segments, qb, qh, qn, kb, kh, kn, vb, vh, vn, scale, eps,
    K: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, F1: tl.constexpr, F2: tl.constexpr,
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
    d = tl.arange(0, BK)
    dtype = q_ptr.dtype.element_ty
    A1, B1, a1, b1, w1 = _selections(table_ptr, weight_ptr, 0, F, K, BK, F1, dtype)
    S1, z1 = _load_state(
        S_ptr, z_ptr, first_S_ptr, first_z_ptr, sequence, 0, segment, segments, 0, v, F, V, F1, HAS_FIRST
    )
    if F2 > 0:
        A2, B2, a2, b2, w2 = _selections(table_ptr, weight_ptr, F1, F, K, BK, F2, dtype)
        S2, z2 = _load_state(
            S_ptr, z_ptr, first_S_ptr, first_z_ptr, sequence, 0, segment, segments, F1, v, F, V, F2, HAS_FIRST
        )
    c = tl.arange(0, C)
    causal = c[:, None] >= c[None, :]
    for start in range(segment * span, tl.minimum((segment + 1) * span, N), C):
        n = start + c
        inside = n < N
        q = tl.load(q_ptr + n[:, None] * qn + d[None, :], mask=inside[:, None] & (d < K)[None, :], other=0.0)
        kT = tl.load(k_ptr + n[None, :] * kn + d[:, None], mask=inside[None, :] & (d < K)[:, None], other=0.0)
        values = tl.load(v_ptr + n[:, None] * vn + v[None, :], mask=inside[:, None] & (v < V)[None, :], other=0.0)
        s = tl.dot(q, kT, input_precision=PRECISION) * scale
        w = tl.where(causal, 1 + s * (1 + 0.5 * s), 0.0)
        num = tl.dot(w.to(dtype), values, input_precision=PRECISION)
        den = tl.sum(w, 1)
        num, den = _read(num, den, q, S1, z1, A1, B1, a1, b1, w1, PRECISION)
        if F2 > 0:
            num, den = _read(num, den, q, S2, z2, A2, B2, a2, b2, w2, PRECISION)
        den += eps
        y = (num / den[:, None]).to(dtype)
        tl.store(y_ptr + n[:, None] * V + v[None, :], y, mask=inside[:, None] & (v < V)[None, :])
        tl.store(den_ptr + sequence * N + n, den, mask=inside & last_values)
        e = inside.to(tl.float32)
        S1, z1 = _write(S1, z1, kT, values, e, A1, B1, a1, b1, w1, PRECISION)
        if F2 > 0:
            S2, z2 = _write(S2, z2, kT, values, e, A2, B2, a2, b2, w2, PRECISION)
    if segment == segments - 1:
        _store_state(last_S_ptr, last_z_ptr, sequence, S1, z1, 0, v, F, V, last_values, F1)
        if F2 > 0:
            _store_state(last_S_ptr, last_z_ptr, sequence, S2, z2, F1, v, F, V, last_values, F2)


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
    q_ptr, k_ptr, v_ptr, u_ptr, e_ptr, table_ptr, weight_ptr, S_ptr, z_ptr, first_S_ptr, first_z_ptr, dq_ptr,
    H, N, V, F, span, segments, qb, qh, qn, kb, kh, kn, vb, vh, vn, scale,
    K: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, F1: tl.constexpr, F2: tl.constexpr,
    HAS_FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of a segment's queries, S made again."""
    sequence = tl.program_id(0).to(tl.int64)
    segment = tl.program_id(1)
    b, h = sequence // H, sequence % H
    q_ptr += b * qb + h * qh
    k_ptr += b * kb + h * kh
    v_ptr += b * vb + h * vh
    v, d, c = tl.arange(0, BV), tl.arange(0, BK), tl.arange(0, C)
    dtype = q_ptr.dtype.element_ty
    A1, B1, a1, b1, w1 = _selections(table_ptr, weight_ptr, 0, F, K, BK, F1, dtype)
    S1, z1 = _load_state(
        S_ptr, z_ptr, first_S_ptr, first_z_ptr, sequence, 0, segment, segments, 0, v, F, V, F1, HAS_FIRST
    )
    if F2 > 0:
        A2, B2, a2, b2, w2 = _selections(table_ptr, weight_ptr, F1, F, K, BK, F2, dtype)
        S2, z2 = _load_state(
            S_ptr, z_ptr, first_S_ptr, first_z_ptr, sequence, 0, segment, segments, F1, v, F, V, F2, HAS_FIRST
        )
    causal = c[:, None] >= c[None, :]
    for start in range(segment * span, tl.minimum((segment + 1) * span, N), C):
        n = start + c
        inside = n < N
        q = tl.load(q_ptr + n[:, None] * qn + d[None, :], mask=inside[:, None] & (d < K)[None, :], other=0.0)
        k = tl.load(k_ptr + n[:, None] * kn + d[None, :], mask=inside[:, None] & (d < K)[None, :], other=0.0)
        values = tl.load(v_ptr + n[:, None] * vn + v[None, :], mask=inside[:, None] & (v < V)[None, :], other=0.0)
        row = sequence * N + n
        u = tl.load(u_ptr + row[:, None] * V + v[None, :], mask=inside[:, None] & (v < V)[None, :], other=0.0)
        e = tl.load(e_ptr + row, mask=inside, other=0.0)
        s = tl.dot(q, k.T, input_precision=PRECISION) * scale
        dw = tl.dot(u, values.T, input_precision=PRECISION) + e[:, None]
        ds = tl.where(causal, dw * (1 + s) * scale, 0.0)
        dq = tl.dot(ds.to(dtype), k, input_precision=PRECISION)
        dq = _gradient(dq, q, S1, z1, u, e, A1, B1, a1, b1, w1, PRECISION)
        if F2 > 0:
            dq = _gradient(dq, q, S2, z2, u, e, A2, B2, a2, b2, w2, PRECISION)
        tl.store(dq_ptr + row[:, None] * K + d[None, :], dq.to(dtype), mask=inside[:, None] & (d < K)[None, :])
        one = inside.to(tl.float32)
        S1, z1 = _write(S1, z1, k.T, values, one, A1, B1, a1, b1, w1, PRECISION)
        if F2 > 0:
            S2, z2 = _write(S2, z2, k.T, values, one, A2, B2, a2, b2, w2, PRECISION)


@triton.jit
def _keys_backward(
    q_ptr, k_ptr, v_ptr, u_ptr, e_ptr, table_ptr, weight_ptr, R_ptr, r_ptr, last_R_ptr, last_r_ptr, dk_ptr, dv_ptr,
    dS_ptr, dz_ptr,
    H, N, V, F, span, segments, qb, qh, qn, kb, kh, kn, vb, vh, vn, scale,
    K: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, F1: tl.constexpr, F2: tl.constexpr,
    HAS_FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of a segment's keys and values, last chunk first, with R over what comes after in place of S."""
    sequence = tl.program_id(0).to(tl.int64)
    segment = tl.program_id(1)
    b, h = sequence // H, sequence % H
    q_ptr += b * qb + h * qh
    k_ptr += b * kb + h * kh
    v_ptr += b * vb + h * vh
    v, d, c = tl.arange(0, BV), tl.arange(0, BK), tl.arange(0, C)
    dtype = q_ptr.dtype.element_ty
    A1, B1, a1, b1, w1 = _selections(table_ptr, weight_ptr, 0, F, K, BK, F1, dtype)
    R1, r1 = _load_state(
        R_ptr, r_ptr, last_R_ptr, last_r_ptr, sequence, segment + 1, segments, segments, 0, v, F, V, F1, HAS_FIRST
    )
    if F2 > 0:
        A2, B2, a2, b2, w2 = _selections(table_ptr, weight_ptr, F1, F, K, BK, F2, dtype)
        R2, r2 = _load_state(
            R_ptr, r_ptr, last_R_ptr, last_r_ptr, sequence, segment + 1, segments, segments, F1, v, F, V, F2, HAS_FIRST
        )
    later = c[:, None] <= c[None, :]  # keys down, queries across
    chunks = tl.cdiv(tl.minimum((segment + 1) * span, N) - segment * span, C)
    for i in range(chunks):
        n = segment * span + (chunks - 1 - i) * C + c
        inside = n < N
        row = sequence * N + n
        q = tl.load(q_ptr + n[:, None] * qn + d[None, :], mask=inside[:, None] & (d < K)[None, :], other=0.0)
        k = tl.load(k_ptr + n[:, None] * kn + d[None, :], mask=inside[:, None] & (d < K)[None, :], other=0.0)
        values = tl.load(v_ptr + n[:, None] * vn + v[None, :], mask=inside[:, None] & (v < V)[None, :], other=0.0)
        u = tl.load(u_ptr + row[:, None] * V + v[None, :], mask=inside[:, None] & (v < V)[None, :], other=0.0)
        e = tl.load(e_ptr + row, mask=inside, other=0.0)
        s = tl.dot(k, q.T, input_precision=PRECISION) * scale
        w = tl.where(later & inside[None, :], 1 + s * (1 + 0.5 * s), 0.0)
        dv = tl.dot(w.to(dtype), u, input_precision=PRECISION)
        dw = tl.dot(values, u.T, input_precision=PRECISION) + e[None, :]
        ds = tl.where(later, dw * (1 + s) * scale, 0.0)
        dk = tl.dot(ds.to(dtype), q, input_precision=PRECISION)
        none = tl.zeros([C], tl.float32)
        dv, _ = _read(dv, none, k, R1, r1, A1, B1, a1, b1, w1, PRECISION)
        dk = _gradient(dk, k, R1, r1, values, none + 1, A1, B1, a1, b1, w1, PRECISION)
        if F2 > 0:
            dv, _ = _read(dv, none, k, R2, r2, A2, B2, a2, b2, w2, PRECISION)
            dk = _gradient(dk, k, R2, r2, values, none + 1, A2, B2, a2, b2, w2, PRECISION)
        tl.store(dk_ptr + row[:, None] * K + d[None, :], dk.to(dtype), mask=inside[:, None] & (d < K)[None, :])
        tl.store(dv_ptr + row[:, None] * V + v[None, :], dv.to(dtype), mask=inside[:, None] & (v < V)[None, :])
        R1, r1 = _write(R1, r1, q.T, u, e, A1, B1, a1, b1, w1, PRECISION)
        if F2 > 0:
            R2, r2 = _write(R2, r2, q.T, u, e, A2, B2, a2, b2, w2, PRECISION)
    if segment == 0:
        _store_state(dS_ptr, dz_ptr, sequence, R1, r1, 0, v, F, V, True, F1)
        if F2 > 0:
            _store_state(dS_ptr, dz_ptr, sequence, R2, r2, F1, v, F, V, True, F2)


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
    q: Tensor, k: Tensor, v: Tensor, S: Tensor | None, z: Tensor | None, table: Tensor, weight: Tensor, eps: float
) -> Outputs:
    q, k, v = _by_rows(q, k, v)
    S, z = (None if t is None else t.contiguous() for t in (S, z))
    y, last_S, last_z, den, sum_S, sum_z = _empty_outputs(q, v, S, weight)
    B, H, N, K = q.shape
    span = _span(q)
    segments = _ceil(N, span)
    blocks = _blocks(q, v, weight)
    grid = (B * H, segments, _ceil(v.shape[-1], blocks["BV"]))
    sizes = (H, N, v.shape[-1], len(weight), span, segments)
    with torch.cuda.device_of(q):
        if segments > 1:
            strides = (*k.stride()[:3], *v.stride()[:3])
            _segment_sums[grid](k, v, None, table, weight, sum_S, sum_z, *sizes, *strides, HAS_E=False, **blocks)
        strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
        _forward[grid](
            q, k, v, table, weight, sum_S, sum_z, S, z, y, den, last_S, last_z, *sizes, *strides, K**-0.5, eps,
            HAS_FIRST=S is not None, **blocks,
        )  # fmt: skip
    return y, last_S, last_z, den, sum_S, sum_z


@_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, S: Tensor | None, z: Tensor | None, table: Tensor, weight: Tensor, eps: float
) -> Outputs:
    return _empty_outputs(q, v, S, weight)


Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Of q, k, v and, in float32, of S and z before the first token."""


@torch.library.custom_op("recallbench::taylor_attention_backward", mutates_args=())
def _gradients(
    q: Tensor, k: Tensor, v: Tensor, S: Tensor | None, z: Tensor | None, table: Tensor, weight: Tensor, y: Tensor,
    den: Tensor, sum_S: Tensor, sum_z: Tensor, dy: Tensor, dlast_S: Tensor | None, dlast_z: Tensor | None,
) -> Gradients:  # fmt: skip
    q, k, v = _by_rows(q, k, v)
    S, z, dlast_S, dlast_z = (None if t is None else t.contiguous() for t in (S, z, dlast_S, dlast_z))
    dq, dk, dv, dS, dz = _empty_gradients(q, k, v, weight)
    (B, H, N, K), V = q.shape, v.shape[-1]
    span = _span(q)
    segments = _ceil(N, span)
    whole = max(16, triton.next_power_of_2(V))
    blocks = {**_blocks(q, v, weight), "BV": whole}
    grid, sizes = (B * H, segments), (H, N, V, len(weight), span, segments)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], K**-0.5)
    u, e = torch.empty_like(y), torch.empty_like(den)
    later_S, later_z = torch.empty_like(sum_S), torch.empty_like(sum_z)
    with torch.cuda.device_of(q):
        _by_numerator[(_ceil(B * H * N, 32),)](y, den, dy.contiguous(), u, e, B * H * N, V, whole, 32)
        if segments > 1:
            _segment_sums[(*grid, 1)](
                q, u, e, table, weight, later_S, later_z, *sizes, *q.stride()[:3], *u.stride()[:3], HAS_E=True, **blocks
            )
        _queries_backward[grid](
            q, k, v, u, e, table, weight, sum_S, sum_z, S, z, dq, *sizes, *strides, HAS_FIRST=S is not None, **blocks
        )
        _keys_backward[grid](
            q, k, v, u, e, table, weight, later_S, later_z, dlast_S, dlast_z, dk, dv, dS, dz, *sizes, *strides,
            HAS_FIRST=dlast_S is not None, **blocks,
        )  # fmt: skip
    return dq, dk, dv, dS, dz


@_gradients.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, S: Tensor | None, z: Tensor | None, table: Tensor, weight: Tensor, y: Tensor,
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
    q, k, v, S, z, table, weight, y, den, sum_S, sum_z = ctx.saved_tensors
    dy = torch.zeros_like(y) if dy is None else dy
    if (dlast_S is None) != (dlast_z is None):
        shape = (*q.shape[:2], len(weight))
        dlast_S = y.new_zeros(*shape, v.shape[-1]) if dlast_S is None else dlast_S
        dlast_z = y.new_zeros(shape) if dlast_z is None else dlast_z
    dq, dk, dv, dS, dz = _gradients(q, k, v, S, z, table, weight, y, den, sum_S, sum_z, dy, dlast_S, dlast_z)
    return dq, dk, dv, None if S is None else dS.to(S.dtype), None if z is None else dz.to(z.dtype), None, None, None


_attention.register_autograd(_backward, setup_context=_save)


@_attention.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Outputs, tuple[int, ...]]:
    """Members are so many more sequences."""
    *tensors, table, weight, eps = args
    merged = [
        None if t is None else (t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)
        for t, dim in zip(tensors, in_dims, strict=False)
    ]
    y, last_S, last_z, den, sum_S, sum_z = (
        t.unflatten(0, (info.batch_size, -1)) for t in _attention(*merged, table, weight, eps)
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
    return _attention(q, k, v, S, z, *_on(features, q.device), eps)[:3]


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
    return _decode(q, k, v, *state, *_on(features, q.device), eps)


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


def _blocks(q: Tensor, v: Tensor, weight: Tensor) -> dict[str, Any]:
    """Block sizes and the compiler's options. Features go in two blocks, F1 and F2, since each is a power of 2."""
    K, F = q.shape[-1], len(weight)
    F1 = max(16, 1 << (F.bit_length() - 1))
    F2 = 0 if F <= F1 else max(16, triton.next_power_of_2(F - F1))
    values = 64 if F <= 160 else 32 if F <= 384 else 16  # so that S takes no more than half of the registers
    return {
        "K": K,
        "BK": max(16, triton.next_power_of_2(K)),
        "BV": max(16, min(triton.next_power_of_2(v.shape[-1]), values)),
        "C": CHUNK,
        "F1": F1,
        "F2": F2,
        "PRECISION": "tf32x3" if q.dtype == torch.float32 else "ieee",
        "num_warps": 4 if F <= 160 else 8,
        "num_stages": 2,
    }


_tables: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}


def _on(features: Features, device: torch.device) -> tuple[Tensor, Tensor]:
    """The indices [2, F] and weights [F] on the device, moved there once."""
    key = len(features.weight), device
    if key not in _tables:
        indices = torch.stack([features.left, features.right]).to(torch.int32)
        _tables[key] = indices.to(device), features.weight.float().to(device)
    return _tables[key]
