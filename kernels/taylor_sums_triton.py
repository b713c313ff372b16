"""Sums of the Taylor map over what came before a chunk of a sequence: how its Triton kernels make and read them.

Of the two that meet one is a reader, x, and the other a writer, x', and with s = x . x' / sqrt(K)

    w = 1 + s + s^2 / 2,   s^2 = sum over i, j of (x_i x_j) (x'_i x'_j) / K,

so that what all writers before have brought, values u with weights e, is read from sums over them:

    sum of w u = S0 + x S1 / sqrt(K) + (x x^T) S2 / 2K   with S0 = sum of u, S1 of x' u^T, S2 of (x' x'^T) u^T
    sum of w e = z0 + x z1 / sqrt(K) + x z2 x^T / 2K     with z0 = sum of e, z1 of e x',   z2 of e x' x'^T.

Memory holds each distinct product once, F of them, in the order of `kernels.taylor_features`, without its weights. On
the chip all K^2 products of S2 are features: they are the outer product of two rows as it is, without a table of which,
and matrix products take them in groups of FEW elements with all others.
"""

# Triton has no types for launches, nor for functions of kernels that return several tensors.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl
from torch import Tensor

from kernels.taylor_features import feature_count


@triton.jit
def rows(x_ptr, n, inside, stride, d, D):
    """Elements d of the rows n: zeros past D and for rows that are not inside."""
    return tl.load(x_ptr + n[:, None] * stride + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def products(few, x):
    """A few elements with each, row by row: [C, FEW], [C, BK] -> [C, FEW BK]."""
    return tl.reshape(few[:, :, None] * x[:, None, :], (few.shape[0], few.shape[1] * x.shape[1]))


@triton.jit
def place(i, j, K: tl.constexpr):
    """Where among the F products that of elements i and j is kept, K being the 1."""
    low, high = tl.minimum(i, j), tl.maximum(i, j)
    pair = 1 + K + low * K - low * (low - 1) // 2 + high - low
    return tl.where(high < K, pair, tl.where(low < K, 1 + low, 0))


@triton.jit
def sums_of(S_ptr, i, j, v, V, K: tl.constexpr):
    """The sums for the products of elements i and j: [.., BV]."""
    at, there = place(i, j, K)[:, None] * V + v[None, :], ((i < K) & (j <= K))[:, None] & (v < V)[None, :]
    return tl.load(S_ptr + at, mask=there, other=0.0)


@triton.jit
def small_sums(S_ptr, z_ptr, v, V, K: tl.constexpr, BK: tl.constexpr):
    """All but S2: S0 [BV], S1 [BK, BV], z0, z1 [BK] and z2 [BK, BK]."""
    d, one = tl.arange(0, BK), tl.full([BK], K, tl.int32)
    S0 = tl.load(S_ptr + v, mask=v < V, other=0.0).to(tl.float32)
    z1 = tl.load(z_ptr + 1 + d, mask=d < K, other=0.0)
    inside = (d < K)[:, None] & (d < K)[None, :]
    z2 = tl.load(z_ptr + place(d[:, None], d[None, :], K), mask=inside, other=0.0)
    return S0, sums_of(S_ptr, d, one, v, V, K), tl.load(z_ptr), z1, z2


@triton.jit
def read(
    x_ptr, n, inside, stride, x, S_ptr, S0, S1, z0, z1, z2, v, V, scale,
    K: tl.constexpr, BK: tl.constexpr, FEW: tl.constexpr, GROUPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The sums of w u [C, BV] and of w e [C] that readers x [C, BK] find."""
    f = tl.arange(0, FEW * BK)
    num = tl.zeros([x.shape[0], v.shape[0]], tl.float32)
    for g in range(GROUPS):
        few = rows(x_ptr, n, inside, stride, g * FEW + tl.arange(0, FEW), K)
        S2 = sums_of(S_ptr, g * FEW + f // BK, f % BK, v, V, K).to(x.dtype)
        num = tl.dot(products(few, x), S2, num, input_precision=PRECISION)
    num = S0[None, :] + scale * (tl.dot(x, S1.to(x.dtype), input_precision=PRECISION) + 0.5 * scale * num)
    den = scale * x.to(tl.float32) * (z1[None, :] + 0.5 * scale * _through(x, z2, PRECISION))
    return num, z0 + tl.sum(den, 1)


@triton.jit
def gradient(
    x_ptr, n, inside, stride, x, u, e, S_ptr, S1, z1, z2, v, V, scale,
    K: tl.constexpr, BK: tl.constexpr, FEW: tl.constexpr, GROUPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What u [C, BV] times the sum of w u, and e [C] times that of w e, give to the readers: [C, BK]."""
    f = tl.arange(0, FEW * BK)
    dx = tl.zeros([x.shape[0], BK], tl.float32)
    for g in range(GROUPS):
        few = rows(x_ptr, n, inside, stride, g * FEW + tl.arange(0, FEW), K).to(tl.float32)
        S2 = sums_of(S_ptr, g * FEW + f // BK, f % BK, v, V, K).to(x.dtype)
        each = tl.reshape(tl.dot(u, S2.T, input_precision=PRECISION), (x.shape[0], FEW, BK))
        dx += tl.sum(each * few[:, :, None], 1)  # half of it twice, as S2 is symmetric
    dx = scale * (tl.dot(u, S1.to(x.dtype).T, input_precision=PRECISION) + scale * dx)
    return dx + scale * e[:, None] * (z1[None, :] + scale * _through(x, z2, PRECISION))


@triton.jit
def _through(x, z2, PRECISION: tl.constexpr):
    """x z2 [C, BK] in the precision of z2, since all of a denominator hangs on it."""
    return tl.dot(x.to(tl.float32), z2, input_precision="tf32" if PRECISION == "ieee" else PRECISION)


@triton.jit
def sum_chunk(
    x_ptr, u_ptr, e_ptr, S_ptr, z_ptr, H, N, V, F, span, xb, xh, xn, ub, uh, un,
    K: tl.constexpr, BK: tl.constexpr, BX: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, FEW: tl.constexpr,
    GROUPS: tl.constexpr, HAS_E: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums over one chunk of `span` writers x with u and e, by default 1: of one group of products."""
    sequence, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    group, v = tl.program_id(2) % GROUPS, tl.program_id(2) // GROUPS * BV + tl.arange(0, BV)
    x_ptr += sequence // H * xb + sequence % H * xh
    u_ptr += sequence // H * ub + sequence % H * uh
    if HAS_E:
        e_ptr += sequence * N
    S_ptr += (sequence * tl.num_programs(1) + chunk) * F * V
    z_ptr += (sequence * tl.num_programs(1) + chunk) * F
    first, last, with_z = chunk * span, tl.minimum((chunk + 1) * span, N), tl.program_id(2) < GROUPS
    if group == 0:  # which sums for S0 and S1, too
        _sum_group(
            x_ptr, u_ptr, e_ptr, S_ptr, z_ptr, first, last, group, with_z, v, N, V, xn, un,
            K, BK, BX, BV, C, FEW, True, HAS_E, PRECISION,
        )  # fmt: skip
    else:
        _sum_group(
            x_ptr, u_ptr, e_ptr, S_ptr, z_ptr, first, last, group, with_z, v, N, V, xn, un,
            K, BK, BX, BV, C, FEW, False, HAS_E, PRECISION,
        )  # fmt: skip


@triton.jit
def _sum_group(
    x_ptr, u_ptr, e_ptr, S_ptr, z_ptr, first, last, group, with_z, v, N, V, xn, un,
    K: tl.constexpr, BK: tl.constexpr, BX: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, FEW: tl.constexpr,
    LINEAR: tl.constexpr, HAS_E: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A product takes 64 rows or more, so that those of x and the 1 are BX wide, zeros at the end; z is 16 wide."""
    f, d, wide, column = tl.arange(0, FEW * BK), tl.arange(0, BK), tl.arange(0, BX), tl.arange(0, 16)
    S2, z2 = tl.zeros([FEW * BK, BV], tl.float32), tl.zeros([FEW * BK, 16], tl.float32)
    S1, z1 = tl.zeros([BX, BV], tl.float32), tl.zeros([BX, 16], tl.float32)
    for start in range(first, last, C):
        n = start + tl.arange(0, C)
        inside = n < N
        few = rows(x_ptr, n, inside, xn, group * FEW + tl.arange(0, FEW), K)
        phi = products(few, rows(x_ptr, n, inside, xn, d, K)).T
        u = rows(u_ptr, n, inside, un, v, V)
        e = inside.to(tl.float32)
        if HAS_E:
            e = tl.load(e_ptr + n, mask=inside, other=0.0)
        e = tl.where(column == 0, e[:, None], 0.0).to(phi.dtype)
        S2, z2 = tl.dot(phi, u, S2, input_precision=PRECISION), tl.dot(phi, e, z2, input_precision=PRECISION)
        if LINEAR:
            x = rows(x_ptr, n, inside, xn, wide, K)
            x1 = tl.where(inside[:, None] & (wide == K)[None, :], 1.0, x).to(phi.dtype).T
            S1, z1 = tl.dot(x1, u, S1, input_precision=PRECISION), tl.dot(x1, e, z1, input_precision=PRECISION)
    i, j = group * FEW + f // BK, f % BK
    _keep(S_ptr, z_ptr, S2, z2, place(i, j, K), (i <= j) & (j < K), v, V, with_z)
    if LINEAR:
        _keep(S_ptr, z_ptr, S1, z1, place(wide, tl.full([BX], K, tl.int32), K), wide <= K, v, V, with_z)


@triton.jit
def _keep(S_ptr, z_ptr, S, z, at, once, v, V, with_z):
    """Write the sums S, and those of e in the first column of z, each where it is `once`."""
    S = S.to(S_ptr.dtype.element_ty)
    tl.store(S_ptr + at[:, None] * V + v[None, :], S, mask=once[:, None] & (v < V)[None, :])
    tl.store(z_ptr + at, tl.sum(z, 1), mask=once & with_z)


@triton.jit
def scan_chunks(
    sum_ptr, first_ptr, last_ptr, weight_ptr, chunks, F, V,
    T: tl.constexpr, SIZE: tl.constexpr, HAS_FIRST: tl.constexpr, HAS_LAST: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """The sums of each chunk become those of all chunks before it, or after it.

    What came before the first, and goes on after the last, is a state, [F, V] with weights. T chunks are under way from
    memory at a time.
    """
    sequence = tl.program_id(0).to(tl.int64)
    element = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside = element < F * V
    weight = tl.load(weight_ptr + element // V, mask=inside, other=1.0)
    total = tl.zeros([SIZE], tl.float32)
    if HAS_FIRST:
        total += tl.load(first_ptr + sequence * F * V + element, mask=inside, other=0.0).to(tl.float32) / weight
    sum_ptr += sequence * chunks * F * V
    for first in range(0, chunks, T):
        new = ()
        for t in tl.static_range(T):
            chunk = chunks - 1 - first - t if REVERSE else first + t
            there = inside & (first + t < chunks)
            new += (tl.load(sum_ptr + chunk * F * V + element, mask=there, other=0.0),)
        for t in tl.static_range(T):
            chunk = chunks - 1 - first - t if REVERSE else first + t
            there = inside & (first + t < chunks)
            tl.store(sum_ptr + chunk * F * V + element, total.to(sum_ptr.dtype.element_ty), mask=there)
            total += new[t].to(tl.float32)
    if HAS_LAST:
        at = last_ptr + sequence * F * V + element
        tl.store(at, (total * weight).to(last_ptr.dtype.element_ty), mask=inside)


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
