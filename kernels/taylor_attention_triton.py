"""Triton kernels for Taylor linear attention: its features are made on the chip and never stored.

A sequence is cut into segments, and these into chunks. One kernel sums phi(k) v^T and phi(k) along each segment and
leaves the sums after each chunk, a second adds up segments (`kernels/taylor_sums_triton.py`), and a third takes tiles
of C queries, which read the sums before their chunk and, with dense scores, the keys of their own. All is parallel over
tiles, segments, heads and sequences but the second, which only adds. The backward pass finds the sums saved, makes the
features again, and does the same for keys and values in reverse, with sums over the queries that come after.

A token and head take, forward, with R rows of sums (153 at K = 16): 4 R V operations to make and to read them, and
chunk (K + V) within the chunk. Bytes are those of q, k, v and y, of which k and v are read twice, 2 (3 K + 3 V) in
bfloat16, and twice R V / chunk of the sums, in bfloat16 where the inputs are.
"""

# Triton has no types for launches, nor for functions of kernels that return several tensors.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from kernels.linear_attention import LinearAttentionState
from kernels.taylor_features import feature_count
from kernels.taylor_step_triton import factors
from kernels.taylor_sums_triton import (
    add_segments,
    all_blocks,
    before,
    by_rows,
    ceil,
    check,
    gradient,
    hold_pairs,
    masks,
    mixed_count,
    pair_count,
    places,
    read_held,
    read_pairs,
    read_small,
    row_count,
    rows,
    small_sums,
    sum_chunks,
    tile_count,
)

CHUNK = 256
"""Positions a chunk: with more, a tile takes more products with keys; with fewer, there are more sums to move."""

TILE = 64
"""Positions a tile, C: as many rows as a group of four warps multiplies at once."""

PROGRAMS = 512
"""What does not change from tile to tile of a chunk is read once for several, as long as so many programs are left."""

SEGMENTS = 256
"""So many programs sum at once; more segments would be more to add up."""

WRITTEN = 3
"""Tiles of products whose sums are in registers together."""

ON_CHIP = 24 * 1024
"""Bytes of shared memory for the sums that a program reads, so that there is room for three programs."""

THREE = {"num_stages": 2, "maxnreg": 168}
"""With which a processor has registers for three."""


@triton.jit
def _outputs(
    q_ptr, k_ptr, v_ptr, S_ptr, z_ptr, base_S_ptr, base_z_ptr, y_ptr, den_ptr,
    H, N, V, span, chunks, steps, tiles, qb, qh, qn, kb, kh, kn, vb, vh, vn, scale, eps,
    K: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, R: tl.constexpr, BLOCKS: tl.constexpr,
    MIXED: tl.constexpr, HELD: tl.constexpr, HAS_PAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Outputs of some `tiles` of queries of one chunk, and the sums of similarities that they are divided by.

    With HELD the sums before the chunk stay on the chip from tile to tile.
    """
    sequence = tl.program_id(1).to(tl.int64)
    v, c, d = tl.program_id(2) * BV + tl.arange(0, BV), tl.arange(0, C), tl.arange(0, BK)
    b, h = sequence // H, sequence % H
    q_ptr += b * qb + h * qh
    k_ptr += b * kb + h * kh
    v_ptr += b * vb + h * vh
    y_ptr += sequence * N * V
    den_ptr += sequence * N
    begin = tl.program_id(0) * tiles * C
    chunk = begin // span
    if HAS_PAST:
        past = before(S_ptr, z_ptr, base_S_ptr, base_z_ptr, sequence, chunk, steps, chunks, V, K, R)
        S0, S1, z0, z1, z2 = small_sums(past, v, V, scale, K, BK, R, MIXED)
        if HELD:
            S2 = hold_pairs(past, v, V, scale, q_ptr.dtype.element_ty, R, BLOCKS, MIXED)
    for start in range(begin, tl.minimum(begin + tiles * C, N), C):
        n = start + c
        inside = n < N
        # All that is read but once is asked for at once, since memory answers late.
        q, k, u = rows(q_ptr, n, inside, qn, d, K), rows(k_ptr, n, inside, kn, d, K), rows(v_ptr, n, inside, vn, v, V)
        blocks = all_blocks(q_ptr, n, inside, qn, K, BLOCKS)
        num, den = tl.zeros([C, BV], tl.float32), tl.zeros([C], tl.float32)
        if HAS_PAST:
            num, den = read_small(q, S0, S1, z0, z1, z2, PRECISION)
            if HELD:
                num = read_held(num, blocks, S2, BLOCKS, PRECISION)
            else:
                num = read_pairs(num, q_ptr, n, inside, qn, past, v, V, scale, K, R, BLOCKS, MIXED, PRECISION)
        for first in range(chunk * span, start, C):
            m, all_of = first + c, tl.full([C], True, tl.int1)
            earlier_k, earlier_u = rows(k_ptr, m, all_of, kn, d, K), rows(v_ptr, m, all_of, vn, v, V)
            s = tl.dot(q, earlier_k.T, input_precision=PRECISION)
            w = 1 + s * (scale + 0.5 * scale * scale * s)
            num = tl.dot(w.to(q.dtype), earlier_u, num, input_precision=PRECISION)
            den += tl.sum(w, 1)
        s = tl.dot(q, k.T, input_precision=PRECISION)
        w = tl.where(c[:, None] >= c[None, :], 1 + s * (scale + 0.5 * scale * scale * s), 0.0)
        num = tl.dot(w.to(q.dtype), u, num, input_precision=PRECISION)
        den += tl.sum(w, 1) + eps
        tl.store(den_ptr + n, den, mask=inside & (tl.program_id(2) == 0))
        at = y_ptr + n[:, None] * V + v[None, :]
        tl.store(at, (num * (1 / den)[:, None]).to(y_ptr.dtype.element_ty), mask=inside[:, None] & (v < V)[None, :])


@triton.jit
def _by_numerator(y_ptr, den_ptr, dy_ptr, u_ptr, e_ptr, R, V, BV: tl.constexpr, C: tl.constexpr):
    """Gradients by what a quotient came from: by the numerator u = dy / den, by the denominator e = - dy . y / den."""
    n = tl.program_id(0).to(tl.int64) * C + tl.arange(0, C)
    v = tl.arange(0, BV)
    inside = (n < R)[:, None] & (v < V)[None, :]
    at = n[:, None] * V + v[None, :]
    y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
    den = tl.load(den_ptr + n, mask=n < R, other=1.0)
    tl.store(u_ptr + at, (dy / den[:, None]).to(u_ptr.dtype.element_ty), mask=inside)
    tl.store(e_ptr + n, -tl.sum(dy * y, 1) / den, mask=n < R)


@triton.jit
def _queries_backward(
    q_ptr, k_ptr, v_ptr, u_ptr, e_ptr, S_ptr, z_ptr, base_S_ptr, base_z_ptr, dq_ptr,
    H, N, V, span, chunks, steps, qb, qh, qn, kb, kh, kn, vb, vh, vn, scale,
    K: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, R: tl.constexpr, BLOCKS: tl.constexpr,
    MIXED: tl.constexpr, HAS_PAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of queries."""
    sequence = tl.program_id(1).to(tl.int64)
    v, c, d = tl.arange(0, BV), tl.arange(0, C), tl.arange(0, BK)
    b, h = sequence // H, sequence % H
    q_ptr += b * qb + h * qh
    k_ptr += b * kb + h * kh
    v_ptr += b * vb + h * vh
    start = tl.program_id(0) * C
    n = start + c
    inside = n < N
    chunk = start // span
    row = sequence * N + n
    q, u = rows(q_ptr, n, inside, qn, d, K), rows(u_ptr, row, inside, V, v, V)
    e = tl.load(e_ptr + row, mask=inside, other=0.0)
    dq = tl.zeros([C, BK], tl.float32)
    if HAS_PAST:
        past = before(S_ptr, z_ptr, base_S_ptr, base_z_ptr, sequence, chunk, steps, chunks, V, K, R)
        _, S1, _, z1, z2 = small_sums(past, v, V, scale, K, BK, R, MIXED)
        dq = gradient(q_ptr, n, inside, qn, q, u, e, S1, z1, z2, past, v, V, scale, K, BK, R, BLOCKS, MIXED, PRECISION)
    for first in range(chunk * span, start + C, C):
        m = first + c
        k, value = rows(k_ptr, m, m < N, kn, d, K), rows(v_ptr, m, m < N, vn, v, V)
        s = scale * tl.dot(q, k.T, input_precision=PRECISION)
        dw = tl.dot(u, value.T, input_precision=PRECISION) + e[:, None]
        ds = tl.where(n[:, None] >= m[None, :], scale * dw * (1 + s), 0.0)
        dq = tl.dot(ds.to(q.dtype), k, dq, input_precision=PRECISION)
    at = dq_ptr + row[:, None] * K + d[None, :]
    tl.store(at, dq.to(dq_ptr.dtype.element_ty), mask=inside[:, None] & (d < K)[None, :])


@triton.jit
def _keys_backward(
    q_ptr, k_ptr, v_ptr, u_ptr, e_ptr, S_ptr, z_ptr, base_S_ptr, base_z_ptr, dk_ptr, dv_ptr,
    H, N, V, span, chunks, steps, qb, qh, qn, kb, kh, kn, vb, vh, vn, scale,
    K: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, R: tl.constexpr, BLOCKS: tl.constexpr,
    MIXED: tl.constexpr, HAS_PAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of keys and values: they read what the queries after them have written."""
    sequence = tl.program_id(1).to(tl.int64)
    v, c, d = tl.arange(0, BV), tl.arange(0, C), tl.arange(0, BK)
    b, h = sequence // H, sequence % H
    q_ptr += b * qb + h * qh
    k_ptr += b * kb + h * kh
    v_ptr += b * vb + h * vh
    start = tl.program_id(0) * C
    n = start + c
    inside = n < N
    chunk = start // span
    row = sequence * N + n
    k, value = rows(k_ptr, n, inside, kn, d, K), rows(v_ptr, n, inside, vn, v, V)
    dk, dv = tl.zeros([C, BK], tl.float32), tl.zeros([C, BV], tl.float32)
    if HAS_PAST:
        e, order = inside.to(tl.float32), chunks - 1 - chunk
        after = before(S_ptr, z_ptr, base_S_ptr, base_z_ptr, sequence, order, steps, chunks, V, K, R)
        S0, S1, z0, z1, z2 = small_sums(after, v, V, scale, K, BK, R, MIXED)
        dv, _ = read_small(k, S0, S1, z0, z1, z2, PRECISION)
        dv = read_pairs(dv, k_ptr, n, inside, kn, after, v, V, scale, K, R, BLOCKS, MIXED, PRECISION)
        dk = gradient(
            k_ptr, n, inside, kn, k, value, e, S1, z1, z2, after, v, V, scale, K, BK, R, BLOCKS, MIXED, PRECISION
        )
    for first in range(start, tl.minimum((chunk + 1) * span, N), C):
        m = first + c
        at = sequence * N + m
        q, u = rows(q_ptr, m, m < N, qn, d, K), rows(u_ptr, at, m < N, V, v, V)
        e = tl.load(e_ptr + at, mask=m < N, other=0.0)
        later = n[:, None] <= m[None, :]  # keys down, queries across; of those that are not inside, u and e are 0
        s = scale * tl.dot(k, q.T, input_precision=PRECISION)
        w = tl.where(later, 1 + s + 0.5 * s * s, 0.0)
        dv = tl.dot(w.to(k.dtype), u, dv, input_precision=PRECISION)
        dw = tl.dot(value, u.T, input_precision=PRECISION) + e[None, :]
        ds = tl.where(later, scale * dw * (1 + s), 0.0)
        dk = tl.dot(ds.to(k.dtype), q, dk, input_precision=PRECISION)
    at = dk_ptr + row[:, None] * K + d[None, :]
    tl.store(at, dk.to(dk_ptr.dtype.element_ty), mask=inside[:, None] & (d < K)[None, :])
    at = dv_ptr + row[:, None] * V + v[None, :]
    tl.store(at, dv.to(dv_ptr.dtype.element_ty), mask=inside[:, None] & (v < V)[None, :])


State = tuple[Tensor, Tensor]
"""S and z."""


class Sums(NamedTuple):
    """What was summed before each chunk, as `kernels.taylor_sums_triton` has it, in float32.

    Of bfloat16 inputs S and its base are in bfloat16; all are of no elements where nothing comes before any chunk.
    """

    S: Tensor
    """[B, H, chunks, R, V]: after each chunk, since its segment began."""
    z: Tensor
    """[B, H, chunks, (K + 1)^2]"""
    base: Tensor
    """[B, H, segments, R, V]: before each segment."""
    base_of_z: Tensor
    """[B, H, segments, (K + 1)^2]"""


def _sum(x: Tensor, u: Tensor, e: Tensor | None, sums: Sums, first: State | None, last: State | None) -> None:
    """Make the `sums` before each chunk, with `e` those after it.

    `first`: a state to start from; `last`: where to write the one that is left.
    """
    (B, H, N, K), V = x.shape, u.shape[-1]
    chunks, steps = ceil(N, CHUNK), _steps(B * H, N, V)
    segments = ceil(chunks, steps)
    _, weight = factors(K, x.device)
    BV = max(64, _width(V, 64))
    few = min(tile_count(K), WRITTEN if x.itemsize == 2 else 1)
    groups = ceil(tile_count(K), few)
    sum_chunks[(B * H, segments, groups * ceil(V, BV))](
        masks(x.dtype, x.device), x, u, e, sums.S, sums.z,
        H, N, V, CHUNK, chunks, steps, *x.stride()[:3], *u.stride()[:3],
        K=K, BX=max(16, triton.next_power_of_2(K + 1)), BV=BV, C=TILE, **_rows(K), TILES=few,
        GROUPS=groups, HAS_E=e is not None, REVERSE=e is not None, **_options(x.dtype),
    )  # fmt: skip
    if first is None and last is None and segments == 1:
        return
    T, size = min(8, triton.next_power_of_2(segments)), 512
    bases = _past(sums, first)[2:]
    for i, (place, width) in enumerate(zip(places(K, x.device), (V, 1), strict=True)):
        given, left = (None if state is None else state[i] for state in (first, last))
        add_segments[(B * H, ceil(len(place) * width, size))](
            sums[i], bases[i], given, left, weight, place, chunks, steps, len(weight), len(place), width, T, size
        )


def _past(sums: Sums, first: object | None) -> list[Tensor | None]:
    """The arguments by which kernels read the sums: no base where all of it is nothing."""
    based = first is not None or sums.base.shape[2] > 1
    return [sums.S, sums.z, *((sums.base, sums.base_of_z) if based else (None, None))]


Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""y [B, H, N, V], S and z after all tokens, the sums that were divided by [B, H, N], and `Sums`."""


@torch.library.custom_op("recallbench::taylor_attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, S: Tensor | None, z: Tensor | None, eps: float, final: bool) -> Outputs:
    q, k, v = by_rows(q, k, v)
    first = None if S is None or z is None else (S.contiguous(), z.contiguous())
    (B, H, N, K), V = q.shape, v.shape[-1]
    y, last_S, last_z, den, *held = _empty_outputs(q, v, S, z, final)
    sums, BV = Sums(*held), _width(V, 64)
    with torch.cuda.device_of(q):
        if _has_past(q, first) or final:
            _sum(k, v, None, sums, first, (last_S, last_z) if final else None)
        held = q.itemsize == 2 and pair_count(K) * 128 * BV <= ON_CHIP
        tiles = _tiles(B * H * ceil(N, TILE) * ceil(V, BV))
        _outputs[(ceil(N, tiles * TILE), B * H, ceil(V, BV))](
            q, k, v, *_past(sums, first), y, den,
            H, N, V, CHUNK, ceil(N, CHUNK), _steps(B * H, N, V), tiles,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], K**-0.5, eps,
            K=K, BK=max(16, triton.next_power_of_2(K)), BV=BV, C=TILE, **_rows(K),
            HELD=held, HAS_PAST=_has_past(q, first),
            **(_options(q.dtype) | (THREE if held else {})),
        )  # fmt: skip
    return y, last_S, last_z, den, sums.S, sums.z, sums.base, sums.base_of_z


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, S: Tensor | None, z: Tensor | None, eps: float, final: bool) -> Outputs:
    return _empty_outputs(q, v, S, z, final)


Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Of q, k, v and, in float32, of S and z before the first token."""


@torch.library.custom_op("recallbench::taylor_attention_backward", mutates_args=())
def _gradients(
    q: Tensor, k: Tensor, v: Tensor, S: Tensor | None, z: Tensor | None, y: Tensor, den: Tensor, sums: list[Tensor],
    dy: Tensor, dlast_S: Tensor | None, dlast_z: Tensor | None,
) -> Gradients:  # fmt: skip
    q, k, v = by_rows(q, k, v)
    (B, H, N, K), V = q.shape, v.shape[-1]
    last = None if dlast_S is None or dlast_z is None else (dlast_S.contiguous(), dlast_z.contiguous())
    u, e, (dq, dk, dv) = torch.empty_like(y), torch.empty_like(den), (t.new_empty(t.shape) for t in (q, k, v))
    dS, dz = _empty_state_gradients(q, v, S)
    first = None if S is None or z is None else (S, z)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    sizes = (H, N, V, CHUNK, ceil(N, CHUNK), _steps(B * H, N, V), *strides, K**-0.5)
    fixed = {"K": K, "BK": max(16, triton.next_power_of_2(K)), "BV": _width(V, 128), "C": TILE, **_rows(K)}
    fixed |= _options(q.dtype)
    later, grid = Sums(*(torch.empty_like(t) for t in sums)), (ceil(N, TILE), B * H)
    with torch.cuda.device_of(q):
        _by_numerator[(ceil(B * H * N, 32),)](y, den, dy.contiguous(), u, e, B * H * N, V, _width(V, 128), 32)
        if _has_past(q, last) or S is not None:
            _sum(q, u, e, later, last, None if S is None else (dS, dz))
        _queries_backward[grid](
            q, k, v, u, e, *_past(Sums(*sums), first), dq, *sizes, HAS_PAST=_has_past(q, first), **fixed
        )
        _keys_backward[grid](q, k, v, u, e, *_past(later, last), dk, dv, *sizes, HAS_PAST=_has_past(q, last), **fixed)
    return dq, dk, dv, dS, dz


@_gradients.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, S: Tensor | None, z: Tensor | None, y: Tensor, den: Tensor, sums: list[Tensor],
    dy: Tensor, dlast_S: Tensor | None, dlast_z: Tensor | None,
) -> Gradients:  # fmt: skip
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), *_empty_state_gradients(q, v, S)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    *tensors, _, _ = inputs
    y, _, _, den, *sums = output
    ctx.mark_non_differentiable(den, *sums)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, y, den, *sums)


def _backward(
    ctx: Any, dy: Tensor | None, dlast_S: Tensor | None, dlast_z: Tensor | None, *unused: None
) -> tuple[Tensor | None, ...]:
    q, k, v, S, z, y, den, *sums = ctx.saved_tensors
    dy = torch.zeros_like(y) if dy is None else dy
    if (dlast_S is None) != (dlast_z is None):
        shape = (*q.shape[:2], feature_count(q.shape[-1]))
        dlast_S = y.new_zeros(*shape, v.shape[-1]) if dlast_S is None else dlast_S
        dlast_z = y.new_zeros(shape) if dlast_z is None else dlast_z
    dq, dk, dv, dS, dz = _gradients(q, k, v, S, z, y, den, sums, dy, dlast_S, dlast_z)
    return dq, dk, dv, None if S is None else dS.to(S.dtype), None if z is None else dz.to(z.dtype), None, None


_attention.register_autograd(_backward, setup_context=_save)


@_attention.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Outputs, tuple[int, ...]]:
    """Members are so many more sequences."""
    *tensors, eps, final = args
    merged = [
        None if t is None else (t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)
        for t, dim in zip(tensors, in_dims, strict=False)
    ]
    y, last_S, last_z, den, S, z, base, base_of_z = (
        t.unflatten(0, (info.batch_size, -1)) for t in _attention(*merged, eps, final)
    )
    return (y, last_S, last_z, den, S, z, base, base_of_z), 8 * (0,)


def fused_taylor_attention(
    q: Tensor, k: Tensor, v: Tensor, state: LinearAttentionState | None, eps: float, final: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`kernels.taylor_attention.taylor_attention` on a GPU: outputs, S and z, for any strides, sums in float32.

    Without `final` S and z are left out, of no elements. Values are padded to a power of two: at K = 4 and V = 48 the
    gradient of the queries was wrong on an H100, where powers of two pass with K = 8, 16, 24 and 32.
    **Raises** `ValueError` where shapes, dtypes or devices do not fit together.
    """
    S, z = (None, None) if state is None else state
    check(q, k, v, S, z)
    V = v.shape[-1]
    spare = _width(V, 128) - V
    if not spare:
        return _attention(q, k, v, S, z, eps, final)[:3]
    v, S = pad(v, (0, spare)), None if S is None else pad(S, (0, spare))
    y, S, z = _attention(q, k, v, S, z, eps, final)[:3]
    return y[..., :V], S[..., :V].contiguous(), z


def _empty_outputs(q: Tensor, v: Tensor, S: Tensor | None, z: Tensor | None, final: bool) -> Outputs:
    (B, H, N, K), V = q.shape, v.shape[-1]
    F = feature_count(K)
    of_S, of_z = (torch.float32 if t is None else t.dtype for t in (S, z))
    of_sums = q.dtype if q.dtype == torch.bfloat16 else torch.float32
    chunks = ceil(N, CHUNK) if final or _has_past(q, S) else 0
    segments = ceil(chunks, _steps(B * H, N, V))
    return (
        v.new_empty(v.shape),
        v.new_empty(B, H, F if final else 0, V, dtype=of_S),
        v.new_empty(B, H, F if final else 0, dtype=of_z),
        v.new_empty(B, H, N, dtype=torch.float32),
        v.new_empty(B, H, chunks, row_count(K), V, dtype=of_sums),
        v.new_empty(B, H, chunks, (K + 1) ** 2, dtype=torch.float32),
        v.new_empty(B, H, segments, row_count(K), V, dtype=of_sums),
        v.new_empty(B, H, segments, (K + 1) ** 2, dtype=torch.float32),
    )


def _empty_state_gradients(q: Tensor, v: Tensor, S: Tensor | None) -> tuple[Tensor, Tensor]:
    shape = (*q.shape[:2], 0 if S is None else feature_count(q.shape[-1]))
    return q.new_empty(*shape, v.shape[-1], dtype=torch.float32), q.new_empty(shape, dtype=torch.float32)


def _tiles(count: int) -> int:
    """How many of so many tiles a program takes one after the other, a power of two that divides those of a chunk."""
    tiles = 1
    while 2 * tiles * TILE <= CHUNK and 2 * tiles * PROGRAMS <= count:
        tiles *= 2
    return tiles


def _steps(sequences: int, N: int, V: int) -> int:
    """How many chunks a program sums one after the other, a power of two."""
    chunks, steps = ceil(N, CHUNK), 1
    while steps < chunks and sequences * ceil(chunks, 2 * steps) * ceil(V, 64) >= SEGMENTS:
        steps *= 2
    return steps


def _has_past(q: Tensor, first: object | None) -> bool:
    """Whether any chunk has anything before it, or after it."""
    return first is not None or q.shape[2] > CHUNK


def _rows(K: int) -> dict[str, int]:
    """Rows of sums."""
    return {"R": row_count(K), "BLOCKS": ceil(K, 8), "MIXED": mixed_count(K)}


def _width(V: int, most: int) -> int:
    """Values a program takes."""
    return max(16, min(int(triton.next_power_of_2(V)), most))


def _options(dtype: torch.dtype) -> dict[str, Any]:
    """Of all kernels; with one stage, kernels ended in illegal accesses (triton 3.6, an H100)."""
    return {"PRECISION": "tf32x3" if dtype == torch.float32 else "ieee", "num_warps": 4, "num_stages": 3}
