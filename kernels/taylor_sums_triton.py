"""Running sums of the Taylor map in registers: what its Triton kernels share.

Of the two that meet one is a reader, x, and the other a writer, x', and with s = x . x' / sqrt(K)

    w = 1 + s + s^2 / 2,   s^2 = sum over i, j of (x_i x_j) (x'_i x'_j) / K,

so that what all writers before have brought, values u, is read from sums over them:

    sum of w u = (x, 1) S1 + (x x^T) S2 / 2   with S1 = sum of (x', 1) u^T, S2 = sum of (x' x'^T) u^T,

the sums divided by sqrt(K), where they are read, as often as an element of x stands in front of them. The sums of w
alone are those of one more value, e, which is 1; their sums Z1 and Z2 have it in the first of NE columns.

All K^2 products of S2 are features on the chip, twice those that are kept: they are the outer product of two rows as it
is, without a table of which, and one matrix product takes them all. Rows (x, 1) are BX = 64 wide, zeros at the end: with
fewer rows a product would leave most of a group of warps idle, each with all of the other operand in registers.
"""

# Triton has no types for launches, nor for functions of kernels that return several tensors.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl
from torch import Tensor

from kernels.taylor_features import feature_count

BX = tl.constexpr(64)
NE = tl.constexpr(16)


@triton.jit
def rows(x_ptr, n, inside, stride, d, K: tl.constexpr):
    """Elements d of the rows n: zeros past K and for rows that are not inside."""
    return tl.load(x_ptr + n[:, None] * stride + d[None, :], mask=inside[:, None] & (d < K)[None, :], other=0.0)


@triton.jit
def with_one(x_ptr, n, inside, stride, K: tl.constexpr):
    """(x, 1) of the rows n: [C, BX], all zeros for rows that are not inside."""
    d = tl.arange(0, BX)
    x = rows(x_ptr, n, inside, stride, d, K)
    return tl.where(inside[:, None] & (d == K)[None, :], 1.0, x).to(x.dtype)


@triton.jit
def values(u_ptr, n, inside, stride, v, V):
    """Elements v of the rows n: zeros past V and for rows that are not inside."""
    return tl.load(u_ptr + n[:, None] * stride + v[None, :], mask=inside[:, None] & (v < V)[None, :], other=0.0)


@triton.jit
def one_more(e, dtype: tl.constexpr):
    """The value e [C] in the first of NE columns."""
    return tl.where(tl.arange(0, NE)[None, :] == 0, e[:, None], 0.0).to(dtype)


@triton.jit
def products(few, x):
    """A few elements with each, row by row: [C, FEW], [C, BK] -> [C, FEW BK]."""
    return tl.reshape(few[:, :, None] * x[:, None, :], (few.shape[0], few.shape[1] * x.shape[1]))


@triton.jit
def once_scaled(S1, scale, K: tl.constexpr):
    """Sums that (x, 1) reads, divided by sqrt(K) but for the 1's."""
    return S1 * tl.where(tl.arange(0, BX) < K, scale, 1.0)[:, None]


@triton.jit
def in_two(Z, dtype: tl.constexpr):
    """Sums of e [.., NE] as two numbers that add up to them: all of a denominator hangs on them."""
    z = tl.sum(Z, 1)[:, None]
    high = z.to(dtype)
    low = (z - high.to(tl.float32)).to(dtype)
    column = tl.arange(0, NE)[None, :]
    return tl.where(column == 0, high, tl.where(column == 1, low, 0.0)).to(dtype)


@triton.jit
def write(
    S1, S2, Z1, Z2, x_ptr, n, inside, stride, x, x1, u, e, base,
    K: tl.constexpr, FEW: tl.constexpr, GROUPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add writers x [C, BK], with a one x1 [C, BX], with their u [C, BV] and e [C, NE].

    To S2 and Z2 the products of all elements with GROUPS of FEW, from `base`.
    """
    new_S, new_Z = (), ()
    for g in tl.static_range(GROUPS):
        few = rows(x_ptr, n, inside, stride, base + g * FEW + tl.arange(0, FEW), K)
        phi = products(few, x).T
        new_S += (tl.dot(phi, u, S2[g], input_precision=PRECISION),)
        new_Z += (tl.dot(phi, e, Z2[g], input_precision=PRECISION),)
    S1, Z1 = tl.dot(x1.T, u, S1, input_precision=PRECISION), tl.dot(x1.T, e, Z1, input_precision=PRECISION)
    return S1, new_S, Z1, new_Z


@triton.jit
def read(
    x_ptr, n, inside, stride, x, x1, S1, S2, Z1, Z2, base, scale, first_part,
    K: tl.constexpr, BV: tl.constexpr, FEW: tl.constexpr, GROUPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The sums of w u [C, BV] and of w e [C] that readers x [C, BK], with a one x1, find in one part of the sums."""
    num, den = tl.zeros([x.shape[0], BV], tl.float32), tl.zeros([x.shape[0], NE], tl.float32)
    for g in tl.static_range(GROUPS):
        few = rows(x_ptr, n, inside, stride, base + g * FEW + tl.arange(0, FEW), K)
        phi = products(few, x)
        num = tl.dot(phi, S2[g].to(x.dtype), num, input_precision=PRECISION)
        den = tl.dot(phi, in_two(Z2[g], x.dtype), den, input_precision=PRECISION)
    num *= 0.5 * scale * scale
    den *= 0.5 * scale * scale
    if first_part:
        num = tl.dot(x1, once_scaled(S1, scale, K).to(x.dtype), num, input_precision=PRECISION)
        den = tl.dot(x1, in_two(once_scaled(Z1, scale, K), x.dtype), den, input_precision=PRECISION)
    return num, tl.sum(den, 1)


@triton.jit
def gradient(
    x_ptr, n, inside, stride, x1, u, e, S1, S2, Z1, Z2, base, scale, first_part,
    K: tl.constexpr, BK: tl.constexpr, FEW: tl.constexpr, GROUPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What u [C, BV] times the sum of w u, and e [C] times that of w e, give to the readers: [C, BX]."""
    of_products = tl.zeros([x1.shape[0], BK], tl.float32)
    twice = tl.where(tl.arange(0, NE)[None, :] < 2, e[:, None], 0.0).to(x1.dtype)  # since Z is in two
    for g in tl.static_range(GROUPS):
        few = rows(x_ptr, n, inside, stride, base + g * FEW + tl.arange(0, FEW), K).to(tl.float32)
        each = tl.dot(u, S2[g].to(x1.dtype).T, input_precision=PRECISION)
        each = tl.dot(twice, in_two(Z2[g], x1.dtype).T, each, input_precision=PRECISION)
        of_products += tl.sum(tl.reshape(each, (x1.shape[0], FEW, BK)) * few[:, :, None], 1)
    of_products *= scale * scale  # half of it twice, as S2 is symmetric
    wider = (tl.arange(0, BK)[:, None] == tl.arange(0, BX)[None, :]).to(x1.dtype)
    dx = tl.dot(of_products.to(x1.dtype), wider, input_precision=PRECISION)
    if first_part:
        dx = tl.dot(u, once_scaled(S1, scale, K).to(x1.dtype).T, dx, input_precision=PRECISION)
        dx = tl.dot(twice, in_two(once_scaled(Z1, scale, K), x1.dtype).T, dx, input_precision=PRECISION)
    return dx


@triton.jit
def kept(i, j, K: tl.constexpr, scale):
    """Where among the F features the product of elements i and j is kept, K being the 1, and its weight there."""
    low, high = tl.minimum(i, j), tl.maximum(i, j)
    pair = 1 + K + low * K - low * (low - 1) // 2 + high - low
    place = tl.where(high < K, pair, tl.where(low < K, 1 + low, 0))
    quadratic = tl.where(low == high, scale * 0.7071067811865476, scale)
    return place, tl.where(high < K, quadratic, tl.where(low < K, tl.sqrt(scale), 1.0))


@triton.jit
def load_sums(
    S_ptr, first_S_ptr, sequence, lo, hi, segments, base, v, F, V, scale,
    K: tl.constexpr, BK: tl.constexpr, FEW: tl.constexpr, GROUPS: tl.constexpr, HAS_FIRST: tl.constexpr,
):  # fmt: skip
    """S1 and S2 of the values v of what came first and of the segments lo .. hi - 1; of z, as one value, Z1 and Z2."""
    d, f, one = tl.arange(0, BX), tl.arange(0, FEW * BK), tl.full([BX], K, tl.int32)
    S1 = _load(S_ptr, first_S_ptr, sequence, lo, hi, segments, d, one, v, F, V, scale, K, HAS_FIRST)
    S2 = ()
    for g in tl.static_range(GROUPS):
        i, j = base + g * FEW + f // BK, f % BK
        S2 += (_load(S_ptr, first_S_ptr, sequence, lo, hi, segments, i, j, v, F, V, scale, K, HAS_FIRST),)
    return S1, S2


@triton.jit
def _load(
    S_ptr, first_S_ptr, sequence, lo, hi, segments, i, j, v, F, V, scale, K: tl.constexpr, HAS_FIRST: tl.constexpr
):
    """The sums for the products of i and j, which are two elements, or one and the 1: [.., BV]."""
    place, weight = kept(i, j, K, scale)
    at, there = place[:, None] * V + v[None, :], ((i <= K) & (j <= K))[:, None] & (v < V)[None, :]
    S = tl.zeros([i.shape[0], v.shape[0]], tl.float32)
    if HAS_FIRST:
        S += tl.load(first_S_ptr + sequence * F * V + at, mask=there, other=0.0).to(tl.float32)
    for segment in range(lo, hi):
        S += tl.load(S_ptr + (sequence * segments + segment) * F * V + at, mask=there, other=0.0)
    return S / weight[:, None]


@triton.jit
def store_sums(
    S_ptr, row, S1, S2, base, v, wanted, first_part, F, V, scale,
    K: tl.constexpr, BK: tl.constexpr, FEW: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """As they are kept, where they are `wanted`; S1 by the `first_part` of the features."""
    d, f, one = tl.arange(0, BX), tl.arange(0, FEW * BK), tl.full([BX], K, tl.int32)
    S_ptr += row * F * V
    _store(S_ptr, S1, d, one, (d <= K) & first_part & wanted, v, V, scale, K)
    for g in tl.static_range(GROUPS):
        i, j = base + g * FEW + f // BK, f % BK
        _store(S_ptr, S2[g], i, j, (i <= j) & (j < K) & wanted, v, V, scale, K)


@triton.jit
def _store(S_ptr, S, i, j, once, v, V, scale, K: tl.constexpr):
    """The sums for the products of i and j, each where it is `once`."""
    place, weight = kept(i, j, K, scale)
    at = S_ptr + place[:, None] * V + v[None, :]
    tl.store(at, (S * weight[:, None]).to(S_ptr.dtype.element_ty), mask=once[:, None] & (v < V)[None, :])


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
