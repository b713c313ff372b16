"""Features of the Taylor map on the chip, and running sums of them in registers: what its Triton kernels share.

Of the two that meet one is a reader, x = (q / sqrt(K), 1), and the other a writer, x' = (k, 1), so that 1 + s = x . x'
and w = ((1 + s)^2 + 1) / 2. A feature is the product of two elements of either, a square counting half with the reader:
no weights are rounded but by those powers of 2. Features come out of tensor cores as (x P) * (x P') with 0-1 matrices,
which is exact, and their gradients go back through the transposes. The sums of w need no features, since

    sum over s of w_ts = (x_t^T M x_t + n) / 2   with M = sum over s of x'_s x'_s^T of n tokens s.

S is held as its transpose, in blocks of BF features, [BV, BF] each.
"""

# Triton has no types for launches, nor for functions of kernels that return several tensors.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

import math
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.taylor_features import feature_count, features

FEATURES = 32
"""Features a block, BF."""

MOST_BLOCKS = 5
"""A program holds the sums of so many, [BV, BF] each, which suffices up to K = 16; others hold those of the rest."""


@triton.jit
def rows(x_ptr, n, inside, stride, scale, K: tl.constexpr, BK: tl.constexpr):
    """x [C, BK]: K inputs times `scale`, a 1, and zeros; all zeros for rows that are not inside."""
    d = tl.arange(0, BK)
    x = tl.load(x_ptr + n[:, None] * stride + d[None, :], mask=inside[:, None] & (d < K)[None, :], other=0.0)
    one = (inside[:, None] & (d == K)[None, :]).to(tl.float32)
    return (x.to(tl.float32) * scale + one).to(x_ptr.dtype.element_ty)


@triton.jit
def factors(x, P_ptr, first, second, i, BK: tl.constexpr, BF: tl.constexpr, PRECISION: tl.constexpr):
    """Both factors of block i of the features: [C, BK] -> [C, BF] each, in float32."""
    at = (i * BF + tl.arange(0, BF))[None, :] * BK + tl.arange(0, BK)[:, None]
    left = tl.dot(x, tl.load(P_ptr + first + at), input_precision=PRECISION)
    right = tl.dot(x, tl.load(P_ptr + second + at), input_precision=PRECISION)
    return left, right


@triton.jit
def read(
    numT,
    x,
    S,
    P_ptr,
    BK: tl.constexpr,
    BF: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add the features of readers [C, BK] times S: numT [BV, C]."""
    for i in tl.static_range(BLOCKS):
        left, right = factors(x, P_ptr, 2 * ROWS * BK, ROWS * BK, i, BK, BF, PRECISION)
        numT += tl.dot(S[i].to(x.dtype), (left * right).to(x.dtype).T, input_precision=PRECISION)
    return numT


@triton.jit
def write(
    S,
    x,
    uT,
    P_ptr,
    BK: tl.constexpr,
    BF: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add u^T times the features of writers [C, BK] to each block [BV, BF]."""
    new = ()
    for i in tl.static_range(BLOCKS):
        left, right = factors(x, P_ptr, 0, ROWS * BK, i, BK, BF, PRECISION)
        phi = (left * right).to(x.dtype)
        new += (S[i] + tl.dot(uT, phi, input_precision=PRECISION),)
    return new


@triton.jit
def gradient(
    dx, numT, x, S, u, P_ptr, BK: tl.constexpr, BF: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr,
    READS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the gradient of readers [C, BK] by that of their features, u S; and, where it `READS`, as `read` does."""
    for i in tl.static_range(BLOCKS):
        left, right = factors(x, P_ptr, 2 * ROWS * BK, ROWS * BK, i, BK, BF, PRECISION)
        kept = S[i].to(x.dtype)
        if READS:
            numT += tl.dot(kept, (left * right).to(x.dtype).T, input_precision=PRECISION)
        dphi = tl.dot(u, kept, input_precision=PRECISION)
        at = (i * BF + tl.arange(0, BF))[:, None] * BK + tl.arange(0, BK)[None, :]
        P_left, P_right = tl.load(P_ptr + 2 * ROWS * BK + at), tl.load(P_ptr + ROWS * BK + at)
        dx += tl.dot((dphi * right).to(x.dtype), P_left, input_precision=PRECISION)
        dx += tl.dot((dphi * left).to(x.dtype), P_right, input_precision=PRECISION)
    return dx, numT


@triton.jit
def through(x, M, PRECISION: tl.constexpr):
    """x M [C, BK] in the precision of M, since all of a denominator hangs on it."""
    return tl.dot(x.to(tl.float32), M, input_precision="tf32" if PRECISION == "ieee" else PRECISION)


@triton.jit
def load_state(
    S_ptr, z_ptr, first_S_ptr, first_z_ptr, place_ptr, weight_ptr, sequence, lo, hi, segments, base, v, F, V,
    BK: tl.constexpr, BF: tl.constexpr, BLOCKS: tl.constexpr, HAS_FIRST: tl.constexpr,
):  # fmt: skip
    """S^T [BV, BF] of each block from `base` and M [BK, BK]: what came first and the sums of segments lo .. hi - 1."""
    all_S = ()
    for i in tl.static_range(BLOCKS):
        f = (base + i) * BF + tl.arange(0, BF)
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
def store_state(
    S_ptr, z_ptr, place_ptr, weight_ptr, row, S, M, base, v, F, V, last,
    BK: tl.constexpr, BF: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """S and z as they are kept. `last`: whether these are the last of the values, with which z goes."""
    for i in tl.static_range(BLOCKS):
        f = (base + i) * BF + tl.arange(0, BF)
        at = S_ptr + row * F * V + f[None, :] * V + v[:, None]
        kept = S[i] * tl.load(weight_ptr + f, mask=f < F, other=0.0)[None, :]
        tl.store(at, kept.to(S_ptr.dtype.element_ty), mask=(f < F)[None, :] & (v < V)[:, None])
    d = tl.arange(0, BK)
    place = tl.load(place_ptr + d[:, None] * BK + d[None, :])
    once = (place >= 0) & (d[:, None] <= d[None, :]) & last
    kept = M * tl.load(weight_ptr + place, mask=place >= 0, other=0.0)
    tl.store(z_ptr + row * F + place, kept.to(z_ptr.dtype.element_ty), mask=once)


@triton.jit
def corner(M, K: tl.constexpr, BK: tl.constexpr):
    """How many tokens M has seen, the product of the 1 with itself."""
    d = tl.arange(0, BK)
    return tl.sum(tl.sum(tl.where((d[:, None] == K) & (d[None, :] == K), M, 0.0), 1), 0)


def check(q: Tensor, k: Tensor, v: Tensor, S: Tensor | None, z: Tensor | None) -> None:
    """**Raises** `ValueError` where shapes, dtypes or devices do not fit together."""
    if q.ndim != 4 or v.ndim != 4:
        raise ValueError(
            f"taylor_attention takes q [B, H, N, K] and v [B, H, N, V], not {list(q.shape)} and {list(v.shape)}"
        )
    (B, H, N, K), V = q.shape, v.shape[-1]
    F = feature_count(K)
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


def ceil(count: int, size: int) -> int:
    """How many of a size hold a count."""
    return -(-count // size)


def by_rows(*tensors: Tensor) -> list[Tensor]:
    """Any strides but the last, which is 1."""
    return [t if t.stride(-1) == 1 else t.contiguous() for t in tensors]


def parts(K: int) -> tuple[int, int]:
    """Into how many equal parts the features are cut, and the blocks of each."""
    blocks = ceil(feature_count(K), FEATURES)
    count = ceil(blocks, MOST_BLOCKS)
    return count, ceil(blocks, count)


class Tables(NamedTuple):
    """What the kernels know of the features."""

    P: Tensor
    """[3, F, BK], F up to whole parts of equally many blocks: for each feature a 1 in the place of its left factor, of
    its right factor, and of its left factor again, where a square counts half."""
    place: Tensor
    """[BK, BK]: which feature, or -1, is the product of two inputs."""
    weight: Tensor
    """[F]"""
    factors: Tensor
    """[2, F]: which inputs."""


@cache
def tables(K: int, device: torch.device, dtype: torch.dtype) -> Tables:
    """Those of K inputs; asked for within operations, so that neither a compiler nor a CUDA graph sees them made."""
    left, right, weight = features(K)
    F = len(weight)
    BK = max(16, triton.next_power_of_2(K + 1))
    f = torch.arange(F, device="cpu")
    P = torch.zeros(3, math.prod(parts(K)) * FEATURES, BK, dtype=dtype, device="cpu")
    P[0, f, left] = P[1, f, right] = P[2, f, left] = 1
    P[2, f[(left == right) & (left < K)]] /= 2
    place = torch.full((BK, BK), -1, dtype=torch.int32, device="cpu")
    place[left, right] = place[right, left] = f.int()
    made = P, place, weight.float(), torch.stack([left, right]).int()
    return Tables(*(t.to(device) for t in made))
