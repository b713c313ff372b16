"""Sums of the Taylor map over what came before a chunk of a sequence: how its Triton kernels make and read them.

Of the two that meet one is a reader, x, and the other a writer, x', and with s = x . x' / sqrt(K)

    w = 1 + s + s^2 / 2,   s^2 = sum over i, j of (x_i x_j) (x'_i x'_j) / K,

so that what all writers before have brought, values u with weights e, is read from sums over them:

    sum of w u = S0 + x S1 / sqrt(K) + (x x^T) S2 / 2K   with S0 = sum of u, S1 of x' u^T, S2 of (x' x'^T) u^T
    sum of w e = z0 + x z1 / sqrt(K) + x z2 x^T / 2K     with z0 = sum of e, z1 of e x',   z2 of e x' x'^T.

A state holds each distinct product once, F of them (`kernels.taylor_features`). Between these kernels products are as
the chip makes them, without a table of which, in tiles of 64: the outer product of two blocks of 8 elements, for each
pair of blocks but their mirror images. A block with itself has each product twice; so at K = 16 its two blocks are
written as one tile, mixed: above its diagonal and on it products within the first, below it those within the second,
whose squares stand elsewhere. So S is [R, V], the 64 rows of each tile, then S1, S0 and such squares: R is F, and no
more, at K = 16. And z is [K + 1, K + 1], of x and a 1 after it.

Chunks are summed in the order in which sums are wanted, a segment of some `steps` of them by one program, which leaves
after each the sums since the first. What came before the segment is a base, so that the sums before a chunk are two.
"""

# Triton has no types for launches, nor for functions of kernels that return several tensors.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.taylor_features import feature_count, features

BLOCK = tl.constexpr(8)
"""Elements a block."""


@triton.jit
def rows(x_ptr, n, inside, stride, d, D):
    """Elements d of the rows n: zeros past D and for rows that are not inside."""
    return tl.load(x_ptr + n[:, None] * stride + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def block(x_ptr, n, inside, stride, a, K: tl.constexpr):
    """Block a of the elements of the rows n: [C, 8]."""
    return rows(x_ptr, n, inside, stride, tl.arange(0, BLOCK) + a * BLOCK, K)


@triton.jit
def all_blocks(x_ptr, n, inside, stride, K: tl.constexpr, BLOCKS: tl.constexpr):
    """All blocks of the rows n."""
    blocks = ()
    for a in tl.static_range(BLOCKS):
        blocks += (block(x_ptr, n, inside, stride, a, K),)
    return blocks


@triton.jit
def before(S_ptr, z_ptr, base_S_ptr, base_z_ptr, sequence, order, steps, chunks, V, K: tl.constexpr, R: tl.constexpr):
    """Where the sums before the chunk that comes `order`-th are, those since the first of its segment and their base.

    **Returns** pointers to S and z, whether there is a chunk before it in its segment, and pointers to a base if any.
    """
    at = sequence * chunks + order - 1
    past = (S_ptr + at * R * V, z_ptr + at * (K + 1) * (K + 1), order % steps > 0)
    if base_S_ptr is not None:
        segment = sequence * tl.cdiv(chunks, steps) + order // steps
        past += (base_S_ptr + segment * R * V, base_z_ptr + segment * (K + 1) * (K + 1))
    return past


@triton.jit
def _load(past, of_z: tl.constexpr, at, there):
    """What was summed, of S or of z: in float32."""
    total = tl.load(past[of_z] + at, mask=there & past[2], other=0.0).to(tl.float32)
    if len(past) > 3:
        total += tl.load(past[3 + of_z] + at, mask=there, other=0.0).to(tl.float32)
    return total


@triton.jit
def small_sums(past, v, V, scale, K: tl.constexpr, BK: tl.constexpr, R: tl.constexpr, MIXED: tl.constexpr):
    """All but S2: S0 [BV] and z0, and with their factors S1 [BK, BV], z1 [BK] and z2 [BK, BK]."""
    d = tl.arange(0, BK)
    S0 = _load(past, 0, v + (R - 1 - BLOCK * MIXED) * V, v < V)
    S1 = _load(
        past, 0, (d + (R - K - 1 - BLOCK * MIXED))[:, None] * V + v[None, :], (d < K)[:, None] & (v < V)[None, :]
    )
    z0, z1 = _load(past, 1, K * (K + 1) + K, True), _load(past, 1, d * (K + 1) + K, d < K)
    z2 = _load(past, 1, d[:, None] * (K + 1) + d[None, :], (d < K)[:, None] & (d < K)[None, :])
    return S0, scale * S1, z0, scale * z1, 0.5 * scale * scale * z2


@triton.jit
def pair_sums(past, a, b, scale, v, V, R: tl.constexpr, BLOCKS: tl.constexpr, MIXED: tl.constexpr):
    """S2 for the products of a pair of blocks, with their factors: [64, BV]; of mirror images one may be 0."""
    f = tl.arange(0, BLOCK * BLOCK)
    if MIXED:
        i, j = f // BLOCK, f % BLOCK
        apart = a * (BLOCKS - 1) - (a * (a - 1)) // 2 + b - a - 1 + MIXED
        row = f + tl.where(a < b, apart, a // 2) * BLOCK * BLOCK
        row = tl.where((a == b) & (a % 2 == 1) & (i == j), a // 2 * BLOCK + i + (R - BLOCK * MIXED), row)
        there = (a < b) | (i == j) | ((i < j) == (a % 2 == 0))
        factor = tl.where((a < b) | (i != j), 1.0, 0.5)
    else:
        row = f + (a * (2 * BLOCKS - a + 1) // 2 + b - a) * BLOCK * BLOCK
        there = f >= 0
        factor = tl.where((a < b) & there, 1.0, 0.5)
    S = _load(past, 0, row[:, None] * V + v[None, :], there[:, None] & (v < V)[None, :])
    return (factor * scale * scale)[:, None] * S


@triton.jit
def read_small(x, S0, S1, z0, z1, z2, PRECISION: tl.constexpr):
    """Of the sums of w u [C, BV] and of w e [C] that readers x [C, BK] find, all but what comes from S2."""
    num = tl.dot(x, S1.to(x.dtype), tl.zeros([x.shape[0], S1.shape[1]], tl.float32) + S0, input_precision=PRECISION)
    return num, z0 + tl.sum(x.to(tl.float32) * (z1[None, :] + _through(x, z2, PRECISION)), 1)


@triton.jit
def hold_pairs(
    past, v, V, scale, dtype: tl.constexpr, R: tl.constexpr, BLOCKS: tl.constexpr, MIXED: tl.constexpr
):  # fmt: skip
    """S2 of all pairs on the chip, with their factors."""
    S2 = ()
    for a in tl.static_range(BLOCKS):
        for b in tl.static_range(a, BLOCKS):
            S2 += (pair_sums(past, a, b, scale, v, V, R, BLOCKS, MIXED).to(dtype),)
    return S2


@triton.jit
def read_held(num, blocks, S2, BLOCKS: tl.constexpr, PRECISION: tl.constexpr):
    """What S2 on the chip adds to the sums of w u that readers, by blocks [C, 8], find."""
    for a in tl.static_range(BLOCKS):
        for b in tl.static_range(a, BLOCKS):
            phi = tl.reshape(blocks[a][:, :, None] * blocks[b][:, None, :], (num.shape[0], BLOCK * BLOCK))
            num = tl.dot(phi, S2[(a * (2 * BLOCKS - a - 1)) // 2 + b], num, input_precision=PRECISION)
    return num


@triton.jit
def read_pairs(
    num, x_ptr, n, inside, stride, past, v, V, scale,
    K: tl.constexpr, R: tl.constexpr, BLOCKS: tl.constexpr, MIXED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The same, one pair of blocks after the other from memory."""
    for pair in range(BLOCKS * (BLOCKS + 1) // 2):
        a, b = _blocks_of(pair, BLOCKS)
        left, right = block(x_ptr, n, inside, stride, a, K), block(x_ptr, n, inside, stride, b, K)
        phi = tl.reshape(left[:, :, None] * right[:, None, :], (num.shape[0], BLOCK * BLOCK))
        S = pair_sums(past, a, b, scale, v, V, R, BLOCKS, MIXED).to(left.dtype)
        num = tl.dot(phi, S, num, input_precision=PRECISION)
    return num


@triton.jit
def gradient(
    x_ptr, n, inside, stride, x, u, e, S1, z1, z2, past, v, V, scale,
    K: tl.constexpr, BK: tl.constexpr, R: tl.constexpr, BLOCKS: tl.constexpr, MIXED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """What u [C, BV] times the sum of w u, and e [C] times that of w e, give to the readers: [C, BK]."""
    dx = tl.zeros([x.shape[0], BK], tl.float32)
    for pair in range(BLOCKS * (BLOCKS + 1) // 2):
        a, b = _blocks_of(pair, BLOCKS)
        left = block(x_ptr, n, inside, stride, a, K).to(tl.float32)
        right = block(x_ptr, n, inside, stride, b, K).to(tl.float32)
        S = pair_sums(past, a, b, scale, v, V, R, BLOCKS, MIXED).to(x.dtype)
        each = tl.reshape(tl.dot(u, S.T, input_precision=PRECISION), (x.shape[0], BLOCK, BLOCK))
        dx += _at_block(a, tl.sum(each * right[:, None, :], 2), BK)
        dx += _at_block(b, tl.sum(each * left[:, :, None], 1), BK)
    dx = tl.dot(u, S1.to(x.dtype).T, dx, input_precision=PRECISION)
    return dx + e[:, None] * (z1[None, :] + 2 * _through(x, z2, PRECISION))


@triton.jit
def _at_block(a, part, BK: tl.constexpr):
    """The elements [C, 8] as block a of [C, BK], zeros elsewhere."""
    wide = tl.broadcast_to(part[:, None, :], (part.shape[0], BK // BLOCK, BLOCK)).reshape(part.shape[0], BK)
    return tl.where((tl.arange(0, BK) // BLOCK == a)[None, :], wide, 0.0)


@triton.jit
def _through(x, z2, PRECISION: tl.constexpr):
    """x z2 [C, BK] in the precision of z2, since all of a denominator hangs on it."""
    return tl.dot(x.to(tl.float32), z2, input_precision="tf32" if PRECISION == "ieee" else PRECISION)


@triton.jit
def sum_chunks(
    masks_ptr, x_ptr, u_ptr, e_ptr, S_ptr, z_ptr, H, N, V, span, chunks, steps, xb, xh, xn, ub, uh, un,
    K: tl.constexpr, BX: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, R: tl.constexpr, BLOCKS: tl.constexpr,
    MIXED: tl.constexpr, TILES: tl.constexpr, GROUPS: tl.constexpr,
    HAS_E: tl.constexpr, REVERSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums over writers x with u and e, by default 1, after each of some `steps` chunks of a `span` of them.

    A program takes TILES tiles, and the one that takes the first ones S0, S1, squares and z, too.
    """
    sequence = tl.program_id(0).to(tl.int64)
    group, v = tl.program_id(2) % GROUPS, tl.program_id(2) // GROUPS * BV + tl.arange(0, BV)
    x_ptr += sequence // H * xb + sequence % H * xh
    u_ptr += sequence // H * ub + sequence % H * uh
    if HAS_E:
        e_ptr += sequence * N
    S_ptr += sequence * chunks * R * V
    z_ptr += sequence * chunks * (K + 1) * (K + 1)
    first = tl.program_id(1) * steps
    last, with_z = tl.minimum(first + steps, chunks), tl.program_id(2) < GROUPS
    if GROUPS == 1 or group == 0:
        _sum_group(
            masks_ptr, x_ptr, u_ptr, e_ptr, S_ptr, z_ptr, first, last, 0, with_z, v,
            N, V, span, chunks, xn, un, K, BX, BV, C, R, BLOCKS, MIXED, TILES, True, HAS_E, REVERSE, PRECISION,
        )  # fmt: skip
    else:
        _sum_group(
            masks_ptr, x_ptr, u_ptr, e_ptr, S_ptr, z_ptr, first, last, group * TILES, with_z, v,
            N, V, span, chunks, xn, un, K, BX, BV, C, R, BLOCKS, MIXED, TILES, False, HAS_E, REVERSE, PRECISION,
        )  # fmt: skip


@triton.jit
def _sum_group(
    masks_ptr, x_ptr, u_ptr, e_ptr, S_ptr, z_ptr, first, last, tile, with_z, v, N, V, span, chunks, xn, un,
    K: tl.constexpr, BX: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, R: tl.constexpr, BLOCKS: tl.constexpr,
    MIXED: tl.constexpr, TILES: tl.constexpr, LINEAR: tl.constexpr,
    HAS_E: tl.constexpr, REVERSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Values go down and products across, as the chip multiplies 64 rows or more at once.

    The 1 follows x, and squares stand K columns behind their elements, which are in the second of two blocks.
    """
    wide, f = tl.arange(0, BX), tl.arange(0, BLOCK * BLOCK)
    S2 = ()
    for _ in tl.static_range(TILES):
        S2 += (tl.zeros([BV, BLOCK * BLOCK], tl.float32),)
    S1, z = tl.zeros([BV, BX], tl.float32), tl.zeros([BX, BX], tl.float32)
    # As masks are read from memory by eights, the compiler has a thread make and write 8 neighbours at once.
    at = masks_ptr + 0 * tl.arange(0, C)[:, None] + f[None, :]
    ones = tl.load(at)
    upper, lower = ones, ones
    if MIXED:
        upper, lower = tl.load(at + BLOCK * BLOCK), tl.load(at + 2 * BLOCK * BLOCK)
    square = (wide >= K) & (wide % (2 * BLOCK) >= BLOCK)
    for order in range(first, last):
        chunk = chunks - 1 - order if REVERSE else order
        for start in range(chunk * span, tl.minimum((chunk + 1) * span, N), C):
            n = start + tl.arange(0, C)
            inside = n < N
            u = rows(u_ptr, n, inside, un, v, V)
            new = ()
            for p in tl.static_range(TILES):
                phi = _products(x_ptr, n, inside, xn, tile + p, ones, upper, lower, K, BLOCKS, MIXED)
                new += (tl.dot(u.T, phi, S2[p], input_precision=PRECISION),)
            S2 = new
            if LINEAR:
                if MIXED:
                    x = rows(x_ptr, n, inside, xn, wide % K, K)
                    x = tl.where((wide < K)[None, :], x, tl.where(square[None, :], x * x, 0.0))
                else:
                    x = rows(x_ptr, n, inside, xn, wide, K)
                x = tl.where(inside[:, None] & (wide == K)[None, :], 1.0, x).to(u.dtype)
                S1 = tl.dot(u.T, x, S1, input_precision=PRECISION)
                weighted = x
                if HAS_E:
                    weighted = (tl.load(e_ptr + n, mask=inside, other=0.0)[:, None] * x).to(x.dtype)
                z = tl.dot(x.T, weighted, z, input_precision=PRECISION)
        S_at = S_ptr + order * R * V
        for p in tl.static_range(TILES):
            row = f + (tile + p) * BLOCK * BLOCK
            _keep(S_at, row, S2[p], row < R - K - 1 - BLOCK * MIXED, v, V)
        if LINEAR:
            row, there = wide + (R - K - 1 - BLOCK * MIXED), wide <= K
            if MIXED:
                row = tl.where(square, (wide - K) // (2 * BLOCK) * BLOCK + wide % BLOCK + (R - BLOCK * MIXED), row)
                there |= square
            _keep(S_at, row, S1, there, v, V)
            i, j = wide[:, None], wide[None, :]
            z_at = z_ptr + order * (K + 1) * (K + 1) + i * (K + 1) + j
            tl.store(z_at, z, mask=(i <= K) & (j <= K) & with_z)


@triton.jit
def _blocks_of(pair, BLOCKS: tl.constexpr):
    """Which blocks a <= b are a pair, in the order of a and then of b."""
    a = pair * 0
    for r in tl.static_range(1, BLOCKS):
        a += pair >= (r * (2 * BLOCKS - r + 1)) // 2
    return a, pair - (a * (2 * BLOCKS - a - 1)) // 2


@triton.jit
def _products(
    x_ptr, n, inside, stride, tile, ones, upper, lower, K: tl.constexpr, BLOCKS: tl.constexpr, MIXED: tl.constexpr
):  # fmt: skip
    """The products of a tile, [C, 64]: mixed tiles come first, and then pairs of blocks."""
    if MIXED:
        if tile < MIXED:
            phi = upper * _outer(x_ptr, n, inside, stride, 2 * tile, 2 * tile, K)
            phi += lower * _outer(x_ptr, n, inside, stride, 2 * tile + 1, 2 * tile + 1, K)
        else:
            a, b = _blocks_apart(tile - MIXED, BLOCKS)
            phi = ones * _outer(x_ptr, n, inside, stride, a, b, K)
    else:
        a, b = _blocks_of(tile, BLOCKS)
        phi = ones * _outer(x_ptr, n, inside, stride, a, b, K)
    return phi


@triton.jit
def _outer(x_ptr, n, inside, stride, a, b, K: tl.constexpr):
    """The products of block a with block b, [C, 64]."""
    left, right = block(x_ptr, n, inside, stride, a, K), block(x_ptr, n, inside, stride, b, K)
    return tl.reshape(left[:, :, None] * right[:, None, :], (n.shape[0], BLOCK * BLOCK))


@triton.jit
def _blocks_apart(tile, BLOCKS: tl.constexpr):
    """Which blocks a < b are a tile, in the order of a and then of b."""
    a = tile * 0
    for r in tl.static_range(1, BLOCKS):
        a += tile >= r * (BLOCKS - 1) - (r * (r - 1)) // 2
    return a, tile - (a * (BLOCKS - 1) - (a * (a - 1)) // 2) + a + 1


@triton.jit
def _keep(S_ptr, row, S, there, v, V):
    """Write the sums S [BV, ..] as some rows."""
    S = S.T.to(S_ptr.dtype.element_ty)
    tl.store(S_ptr + row[:, None] * V + v[None, :], S, mask=there[:, None] & (v < V)[None, :])


@triton.jit
def add_segments(
    sum_ptr, base_ptr, first_ptr, last_ptr, weight_ptr, place_ptr, chunks, steps, F, R, V,
    T: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The sums before each segment, as a base that there is unless all of it is nothing.

    What came before the first, and goes on after the last, is a state, [F, V] with weights. T sums are under way from
    memory at a time.
    """
    sequence = tl.program_id(0).to(tl.int64)
    element = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside, segments = element < R * V, tl.cdiv(chunks, steps)
    total = tl.zeros([SIZE], tl.float32)
    place = tl.load(place_ptr + element // V, mask=inside, other=0)
    f = tl.where(place < 0, -1 - place, place)
    weight, at = tl.load(weight_ptr + f), sequence * F * V + f * V + element % V
    if first_ptr is not None:
        total += tl.load(first_ptr + at, mask=inside, other=0.0).to(tl.float32) / weight
    sum_ptr += sequence * chunks * R * V + element
    if base_ptr is not None:
        base_ptr += sequence * segments * R * V + element
    for first in range(0, segments, T):
        new = ()
        for t in tl.static_range(T):
            chunk = tl.minimum((first + t + 1) * steps, chunks) - 1
            new += (tl.load(sum_ptr + chunk * R * V, mask=inside & (first + t < segments), other=0.0),)
        for t in tl.static_range(T):
            there = inside & (first + t < segments)
            if base_ptr is not None:
                tl.store(base_ptr + (first + t) * R * V, total.to(base_ptr.dtype.element_ty), mask=there)
            total += new[t].to(tl.float32)
    if last_ptr is not None:
        tl.store(last_ptr + at, (total * weight).to(last_ptr.dtype.element_ty), mask=inside & (place >= 0))


def row_count(K: int) -> int:
    """R: 64 products a tile, the elements of x, 1, and the squares that mixed tiles leave out."""
    return 64 * tile_count(K) + K + 1 + 8 * mixed_count(K)


def mixed_count(K: int) -> int:
    """Mixed tiles: of K = 16, whose two blocks leave columns enough for squares behind those of the elements."""
    return 1 if K == 16 else 0


def tile_count(K: int) -> int:
    """Tiles in all."""
    return pair_count(K) - mixed_count(K)


def pair_count(K: int) -> int:
    """Pairs of blocks but their mirror images."""
    blocks = ceil(K, BLOCK.value)
    return blocks * (blocks + 1) // 2


@cache
def masks(dtype: torch.dtype, device: torch.device) -> Tensor:
    """For the products of a tile, [3, 64]: ones, and those above the diagonal and on it, and below it."""
    ones = torch.ones(BLOCK.value, BLOCK.value)
    return torch.stack([ones, ones.triu(), ones.tril(-1)]).to(device, dtype)


@cache
def places(K: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For the rows of S and the elements of z, which of the F features each is; -1 - f for one that another is, too.

    Asked for within operations, so that neither a compiler nor a CUDA graph sees them made.
    """
    left, right, _ = features(K)
    feature = torch.zeros(K + 1, K + 1, dtype=torch.int32, device="cpu")
    feature[left, right] = torch.arange(len(left), dtype=torch.int32, device="cpu")
    once = feature.triu() - (1 + feature.T).tril(-1)
    padded = torch.full((ceil(K, 8) * 8,) * 2, -1, dtype=torch.int32, device="cpu")  # what is past K is nothing
    padded[:K, :K] = once[:K, :K]
    squares = padded.unflatten(1, (-1, 8)).unflatten(0, (-1, 8)).transpose(1, 2)  # [a, b, 8, 8]
    mixed = mixed_count(K)
    tiles = [squares[2 * m, 2 * m].triu() + squares[2 * m + 1, 2 * m + 1].T.tril(-1) for m in range(mixed)]
    a, b = torch.triu_indices(*squares.shape[:2], offset=1 if mixed else 0, device="cpu")
    left_out = [feature.diagonal()[16 * m + 8 : 16 * m + 16] for m in range(mixed)]
    of_S = torch.cat([*(tile.flatten() for tile in tiles), squares[a, b].flatten(), once[:, K], *left_out])
    return of_S.to(device), once.flatten().to(device)


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
