"""Triton kernels for the parallel form of sliding-window attention: scores never reach memory.

As in FlashAttention-2 (Dao 2023, arXiv 2307.08691), a program takes a tile of queries, goes through the keys in tiles
and keeps a running softmax, in base 2; of the keys it reads only those that the window of one of its queries reaches.
Tiles that all its queries see whole need no mask. The backward pass makes the scores again from their log-sum-exp: a
first kernel goes through the keys of a tile of queries, for dq, a second through the queries of a tile of keys, of all
heads that read them, for dk and dv.

With tiles of C queries a token and head take 2 (C + W) (K + V) operations forward, and bytes of q, k, v and y once from
memory, of k and v (1 + W / C) times from its cache, since programs that run at a time stand beside each other.
"""

# Triton has no types for launches, nor for functions of kernels that return several tensors.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.sliding_window_triton import LOG2E

TILES = {
    (2, 64): {"forward": (64, 32, 4, 3), "queries": (64, 32, 4, 3), "keys": (32, 64, 4, 2)},
    (2, 128): {"forward": (64, 32, 4, 3), "queries": (64, 32, 4, 3), "keys": (32, 64, 8, 2)},
    (2, 256): {"forward": (64, 32, 8, 2), "queries": (64, 32, 8, 2), "keys": (32, 32, 8, 2)},
    (4, 64): {"forward": (64, 32, 4, 2), "queries": (64, 32, 4, 2), "keys": (16, 16, 4, 2)},
    (4, 128): {"forward": (16, 32, 4, 2), "queries": (16, 16, 4, 2), "keys": (16, 16, 4, 2)},
}
"""By the bytes of an element and the width of a head, for the forward and the two backward kernels: queries and keys a
tile, warps, stages. With so many registers suffice, and up to a width of 64 there are two to five programs a processor.
"""

ROW = 16
"""Rows are padded to a multiple of so many elements, which the compiler takes as a sign that it may read several at a
time: one by one would take more registers than there are.
"""

LOWEST = tl.constexpr(-1e30)
"""Below every score, and finite: what is masked is below it still, so that no difference is that of two infinities."""


@triton.jit
def _load(x_ptr, first, stride, end, C: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, MASKED: tl.constexpr):
    """Rows first .. first + C - 1 of x: [C, BD], zeros past D and, where MASKED, from row `end` on."""
    c, d = tl.arange(0, C), tl.arange(0, BD)
    at = x_ptr + tl.cast(first, tl.int64) * stride + (c[:, None] * stride + d[None, :])
    if MASKED:
        inside = (first + c < end)[:, None]
        if D < BD:
            inside = inside & (d < D)[None, :]
        return tl.load(at, mask=inside, other=0.0)
    if D < BD:
        return tl.load(at, mask=(d < D)[None, :], other=0.0)
    return tl.load(at)


@triton.jit
def _store(x_ptr, first, stride, end, x, C: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    c, d = tl.arange(0, C), tl.arange(0, BD)
    at = x_ptr + tl.cast(first, tl.int64) * stride + (c[:, None] * stride + d[None, :])
    tl.store(at, x.to(x_ptr.dtype.element_ty), mask=(first + c < end)[:, None] & (d < D)[None, :])


@triton.jit
def _exists(past_ptr, j, P, T, HAS_PAST: tl.constexpr):
    """Which of the keys j, of T, the first P before the first query, there are."""
    there = j < T
    if HAS_PAST:
        there = there & (tl.load(past_ptr + j, mask=j < P, other=1) != 0)
    return there


@triton.jit
def _place(H, N, C: tl.constexpr):
    """Sequence, head and first row of a program: heads beside each other, then tiles, as rows often lie in memory."""
    program, tiles = tl.program_id(0), tl.cdiv(N, C)
    b = program // (H * tiles)
    return tl.cast(b, tl.int64), tl.cast(program % H, tl.int64), program // H % tiles * C


@triton.jit
def _keys(first, N, P, W, BM: tl.constexpr, BN: tl.constexpr):
    """Which tiles of keys the queries of a tile reach: where they start, how many, how many before and of the whole.

    Query i stands at position i + P of the keys. The last tile ends with the last query's own key,
    unless the first would start before there is one.
    """
    end = tl.minimum(first + BM, N) + P
    tiles = tl.cdiv(end - tl.maximum(first + P - W + 1, 0), BN)
    start = tl.maximum(end - tiles * BN, 0)
    before = tl.cdiv(tl.maximum(tl.maximum(end - W, P) - start, 0), BN)
    whole = tl.maximum((first + P + 1 - start) // BN - before, 0)
    return start, tiles, before, whole


@triton.jit
def _queries(first, N, P, W, BM: tl.constexpr, BN: tl.constexpr):
    """Which tiles of queries see the keys of a tile; as `_keys`. The first starts with the first key's own query."""
    T = P + N
    start = tl.maximum(first - P, 0)
    end = tl.minimum(tl.minimum(first + BN, T) - 1 + W, T) - P
    tiles = tl.cdiv(tl.maximum(end - start, 0), BM)
    before = tl.minimum(tl.cdiv(tl.maximum(first + BN - 1 - P - start, 0), BM), tiles)
    whole = tl.maximum(tl.maximum(tl.minimum(first + W - P, N) - start, 0) // BM - before, 0)
    return start, tiles, before, tl.where(first < P, 0, whole)  # what is in the past may not exist


@triton.jit
def _read(
    q, high, total, acc, k_ptr, v_ptr, past_ptr, first, start, turns, before, skipped, N, P, W, kn, vn, c,
    K: tl.constexpr, BK: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    MASKED: tl.constexpr, HAS_PAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Goes through tiles of keys, skipping some after those before: running maxima, sums of weights and of values."""
    i = first + P + tl.arange(0, BM)
    for turn in range(turns):
        at = start + tl.where(turn < before, turn, turn + skipped) * BN
        k = _load(k_ptr, at, kn, P + N, BN, K, BK, MASKED)
        v = _load(v_ptr, at, vn, P + N, BN, V, BV, MASKED)
        s = tl.dot(q, k.T, input_precision=PRECISION) * c
        if MASKED:
            j = at + tl.arange(0, BN)
            ago = i[:, None] - j[None, :]
            s = tl.where((ago >= 0) & (ago < W) & _exists(past_ptr, j, P, P + N, HAS_PAST)[None, :], s, -float("inf"))
        higher = tl.maximum(high, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        scale = tl.exp2(high - higher)
        total = total * scale + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * scale[:, None], input_precision=PRECISION)
        high = higher
    return high, total, acc


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, past_ptr, y_ptr, lse_ptr, H, G, N, P, W, scale,
    qb, qh, qn, kb, kh, kn, vb, vh, vn, yb, yh, yn,
    K: tl.constexpr, BK: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_PAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Outputs of a tile of queries, and log2 of the sums of 2^(scores) that they were divided by."""
    b, h, first = _place(H, N, BM)
    g = h // (H // G)
    k_ptr += b * kb + g * kh
    v_ptr += b * vb + g * vh
    if HAS_PAST:
        past_ptr += b * P
    c = scale * LOG2E
    q = _load(q_ptr + b * qb + h * qh, first, qn, N, BM, K, BK, True)
    start, tiles, before, whole = _keys(first, N, P, W, BM, BN)
    high = tl.full([BM], LOWEST, tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BV], tl.float32)
    high, total, acc = _read(
        q, high, total, acc, k_ptr, v_ptr, past_ptr, first, start, whole, 0, before, N, P, W, kn, vn, c,
        K, BK, V, BV, BM, BN, False, HAS_PAST, PRECISION,
    )  # fmt: skip
    high, total, acc = _read(
        q, high, total, acc, k_ptr, v_ptr, past_ptr, first, start, tiles - whole, before, whole, N, P, W, kn, vn, c,
        K, BK, V, BV, BM, BN, True, HAS_PAST, PRECISION,
    )  # fmt: skip
    _store(y_ptr + b * yb + h * yh, first, yn, N, acc / total[:, None], BM, V, BV)
    n = first + tl.arange(0, BM)
    tl.store(lse_ptr + (b * H + h) * N + n, high + tl.log2(total), mask=n < N)


@triton.jit
def _toward_keys(
    q, dy, lse, delta, dq, k_ptr, v_ptr, past_ptr, first, start, turns, before, skipped, N, P, W, kn, vn, c,
    K: tl.constexpr, BK: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    MASKED: tl.constexpr, HAS_PAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i = first + P + tl.arange(0, BM)
    for turn in range(turns):
        at = start + tl.where(turn < before, turn, turn + skipped) * BN
        k = _load(k_ptr, at, kn, P + N, BN, K, BK, MASKED)
        v = _load(v_ptr, at, vn, P + N, BN, V, BV, MASKED)
        p = tl.exp2(tl.dot(q, k.T, input_precision=PRECISION) * c - lse[:, None])
        if MASKED:
            j = at + tl.arange(0, BN)
            ago = i[:, None] - j[None, :]
            p = tl.where((ago >= 0) & (ago < W) & _exists(past_ptr, j, P, P + N, HAS_PAST)[None, :], p, 0.0)
        ds = p * (tl.dot(dy, v.T, input_precision=PRECISION) - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    return dq


@triton.jit
def _queries_backward(
    q_ptr, k_ptr, v_ptr, past_ptr, y_ptr, lse_ptr, dy_ptr, dq_ptr, delta_ptr, H, G, N, P, W, scale,
    qb, qh, qn, kb, kh, kn, vb, vh, vn, yb, yh, yn, dyb, dyh, dyn, dqb, dqh, dqn,
    K: tl.constexpr, BK: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_PAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of queries, and delta = dy . y of each."""
    b, h, first = _place(H, N, BM)
    g = h // (H // G)
    k_ptr += b * kb + g * kh
    v_ptr += b * vb + g * vh
    if HAS_PAST:
        past_ptr += b * P
    c = scale * LOG2E
    n = first + tl.arange(0, BM)
    row = (b * H + h) * N + n
    dy = _load(dy_ptr + b * dyb + h * dyh, first, dyn, N, BM, V, BV, True)
    y = _load(y_ptr + b * yb + h * yh, first, yn, N, BM, V, BV, True)
    delta = tl.sum(dy.to(tl.float32) * y.to(tl.float32), 1)
    tl.store(delta_ptr + row, delta, mask=n < N)
    q = _load(q_ptr + b * qb + h * qh, first, qn, N, BM, K, BK, True)
    lse = tl.load(lse_ptr + row, mask=n < N, other=float("inf"))
    start, tiles, before, whole = _keys(first, N, P, W, BM, BN)
    dq = tl.zeros([BM, BK], tl.float32)
    dq = _toward_keys(
        q, dy, lse, delta, dq, k_ptr, v_ptr, past_ptr, first, start, whole, 0, before, N, P, W, kn, vn, c,
        K, BK, V, BV, BM, BN, False, HAS_PAST, PRECISION,
    )  # fmt: skip
    dq = _toward_keys(
        q, dy, lse, delta, dq, k_ptr, v_ptr, past_ptr, first, start, tiles - whole, before, whole, N, P, W, kn, vn, c,
        K, BK, V, BV, BM, BN, True, HAS_PAST, PRECISION,
    )  # fmt: skip
    _store(dq_ptr + b * dqb + h * dqh, first, dqn, N, scale * dq, BM, K, BK)


@triton.jit
def _toward_queries(
    k, v, there, dk, dv, q_ptr, dy_ptr, lse_ptr, delta_ptr, first, start, heads, turns, before, skipped,
    N, P, W, qh, qn, dyh, dyn, c,
    K: tl.constexpr, BK: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All heads that read the keys, one after another; scores lie with keys down and queries across."""
    j = first + tl.arange(0, BN)
    for each in range(heads * turns):
        # A division by `turns` tells the compiler that it is not 0, and then loads for a first round are made for none.
        h, turn = tl.cast(each // tl.maximum(turns, 1), tl.int64), each % tl.maximum(turns, 1)
        at = start + tl.where(turn < before, turn, turn + skipped) * BM
        n = at + tl.arange(0, BM)
        q = _load(q_ptr + h * qh, at, qn, N, BM, K, BK, MASKED)
        dy = _load(dy_ptr + h * dyh, at, dyn, N, BM, V, BV, MASKED)
        if MASKED:  # a weight 2^(s - inf) is 0
            lse = tl.load(lse_ptr + h * N + n, mask=n < N, other=float("inf"))
            delta = tl.load(delta_ptr + h * N + n, mask=n < N, other=0.0)
        else:
            lse = tl.load(lse_ptr + h * N + n)
            delta = tl.load(delta_ptr + h * N + n)
        p = tl.exp2(tl.dot(k, q.T, input_precision=PRECISION) * c - lse[None, :])
        if MASKED:
            ago = (P + n)[None, :] - j[:, None]
            p = tl.where((ago >= 0) & (ago < W) & there[:, None], p, 0.0)
        dv = tl.dot(p.to(dy.dtype), dy, dv, input_precision=PRECISION)
        dp = tl.dot(v, dy.T, tl.zeros([BN, BM], tl.float32) - delta[None, :], input_precision=PRECISION)
        dk = tl.dot((p * dp).to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def _keys_backward(
    q_ptr, k_ptr, v_ptr, past_ptr, lse_ptr, dy_ptr, delta_ptr, dk_ptr, dv_ptr, H, G, N, P, W, scale,
    qb, qh, qn, kb, kh, kn, vb, vh, vn, dyb, dyh, dyn, dkb, dkh, dkn, dvb, dvh, dvn,
    K: tl.constexpr, BK: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_PAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of keys and values, those of the past included."""
    b, g, first = _place(G, P + N, BN)
    heads, T = H // G, P + N
    q_ptr += b * qb + g * heads * qh
    dy_ptr += b * dyb + g * heads * dyh
    lse_ptr += (b * H + g * heads) * N
    delta_ptr += (b * H + g * heads) * N
    if HAS_PAST:
        past_ptr += b * P
    c = scale * LOG2E
    k = _load(k_ptr + b * kb + g * kh, first, kn, T, BN, K, BK, True)
    v = _load(v_ptr + b * vb + g * vh, first, vn, T, BN, V, BV, True)
    there = _exists(past_ptr, first + tl.arange(0, BN), P, T, HAS_PAST)
    start, tiles, before, whole = _queries(first, N, P, W, BM, BN)
    dk, dv = tl.zeros([BN, BK], tl.float32), tl.zeros([BN, BV], tl.float32)
    dk, dv = _toward_queries(
        k, v, there, dk, dv, q_ptr, dy_ptr, lse_ptr, delta_ptr, first, start, heads, whole, 0, before,
        N, P, W, qh, qn, dyh, dyn, c, K, BK, V, BV, BM, BN, False, PRECISION,
    )  # fmt: skip
    dk, dv = _toward_queries(
        k, v, there, dk, dv, q_ptr, dy_ptr, lse_ptr, delta_ptr, first, start, heads, tiles - whole, before, whole,
        N, P, W, qh, qn, dyh, dyn, c, K, BK, V, BV, BM, BN, True, PRECISION,
    )  # fmt: skip
    _store(dk_ptr + b * dkb + g * dkh, first, dkn, T, scale * dk, BN, K, BK)
    _store(dv_ptr + b * dvb + g * dvh, first, dvn, T, dv, BN, V, BV)


@torch.library.custom_op("recallbench::sliding_window", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, past: Tensor | None, window_size: int, scale: float
) -> tuple[Tensor, Tensor]:
    q, k, v = _by_rows(q, k, v)
    B, H, N, _ = q.shape
    y, lse = _empty_outputs(q, v)
    sizes, blocks = (*_sizes(q, k), window_size, scale), _blocks("forward", q, v)
    with torch.cuda.device_of(q):
        _forward[(B * H * triton.cdiv(N, blocks["BM"]),)](
            q, k, v, _bytes(past), y, lse, *sizes, *_strides(q, k, v, y), HAS_PAST=past is not None, **blocks
        )
    return y, lse


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, past: Tensor | None, window_size: int, scale: float) -> tuple[Tensor, Tensor]:
    return _empty_outputs(q, v)


@torch.library.custom_op("recallbench::sliding_window_backward", mutates_args=())
def _gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past: Tensor | None,
    y: Tensor,
    lse: Tensor,
    dy: Tensor,
    window_size: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, dy = _by_rows(q, k, v, dy)
    (B, H, N, _), (_, G, T, _) = q.shape, k.shape
    dq, dk, dv = (_empty_by_position(t, t.shape[1], t.shape[2], t.shape[3]) for t in (q, k, v))
    delta = torch.empty_like(lse)
    sizes, has_past, past = (*_sizes(q, k), window_size, scale), past is not None, _bytes(past)
    of_queries, of_keys = _blocks("queries", q, v), _blocks("keys", q, v)
    with torch.cuda.device_of(q):
        _queries_backward[(B * H * triton.cdiv(N, of_queries["BM"]),)](
            q, k, v, past, y, lse, dy, dq, delta, *sizes, *_strides(q, k, v, y, dy, dq),
            HAS_PAST=has_past, **of_queries,
        )  # fmt: skip
        _keys_backward[(B * G * triton.cdiv(T, of_keys["BN"]),)](
            q, k, v, past, lse, dy, delta, dk, dv, *sizes, *_strides(q, k, v, dy, dk, dv),
            HAS_PAST=has_past, **of_keys,
        )  # fmt: skip
    return dq, dk, dv


@_gradients.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past: Tensor | None,
    y: Tensor,
    lse: Tensor,
    dy: Tensor,
    window_size: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (_empty_by_position(t, t.shape[1], t.shape[2], t.shape[3]) for t in (q, k, v))
    return dq, dk, dv


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window_size, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, dy: Tensor, unused: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, past, y, lse = ctx.saved_tensors
    return *_gradients(q, k, v, past, y, lse, dy, ctx.window_size, ctx.scale), None, None, None


_attention.register_autograd(_backward, setup_context=_save)


@_attention.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """Members are so many more sequences."""
    *tensors, window_size, scale = args
    merged = [
        None if t is None else (t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)
        for t, dim in zip(tensors, in_dims, strict=False)
    ]
    y, lse = (t.unflatten(0, (info.batch_size, -1)) for t in _attention(*merged, window_size, scale))
    return (y, lse), (0, 0)


def fused_sliding_window(q: Tensor, k: Tensor, v: Tensor, window_size: int, past: Tensor | None) -> Tensor:
    """`kernels.sliding_window.sliding_window_attention` on a GPU, for any strides.

    **Raises** `ValueError` where shapes, dtypes or devices do not fit together.
    """
    _check(q, k, v, past)
    K, V = q.shape[-1], v.shape[-1]
    q, k, v = (F.pad(t, (0, -t.shape[-1] % ROW)) if t.shape[-1] % ROW else t for t in (q, k, v))
    return _attention(q, k, v, past, window_size, K**-0.5)[0][..., :V]


def _check(q: Tensor, k: Tensor, v: Tensor, past: Tensor | None) -> None:
    (B, H, N, K), (_, G, T, V) = q.shape, v.shape
    shapes = {"k": (k, (B, G, T, K)), "v": (v, (B, G, T, V))}
    if past is not None:
        shapes["past"] = (past, (B, T - N))
    for name, (t, shape) in shapes.items():
        if t.shape != shape:
            raise ValueError(f"sliding_window got {name} {list(t.shape)}, and takes {list(shape)}")
        if t.device != q.device:
            raise ValueError(f"sliding_window got q on {q.device} and {name} on {t.device}, and takes one device")
        if name != "past" and t.dtype != q.dtype:
            raise ValueError(f"sliding_window got q in {q.dtype} and {name} in {t.dtype}, and takes one dtype")
    if past is None and T != N:
        raise ValueError(f"sliding_window got {T} keys for {N} queries and no `past`, and takes {N}")
    if H % G:
        raise ValueError(f"sliding_window got {H} heads of queries, and takes a multiple of the {G} of keys")


def _by_rows(*tensors: Tensor) -> list[Tensor]:
    """Tensors in whose rows the elements lie beside each other, and which start at a multiple of ROW elements."""
    return [
        t
        if t.stride(-1) == 1 and not any(n % ROW for n in (t.storage_offset(), *t.stride()[:3]))
        else t.clone(memory_format=torch.contiguous_format)
        for t in tensors
    ]


def _bytes(past: Tensor | None) -> Tensor | None:
    return None if past is None else past.contiguous().view(torch.uint8)


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for t in tensors for stride in t.stride()[:3])


def _sizes(q: Tensor, k: Tensor) -> tuple[int, int, int, int]:
    """H, G, N and P."""
    (_, H, N, _), (_, G, T, _) = q.shape, k.shape
    return H, G, N, T - N


def _empty_by_position(like: Tensor, H: int, N: int, width: int) -> Tensor:
    """[B, H, N, width] whose heads lie beside each other in memory, as projections make and take them."""
    return like.new_empty(len(like), N, H, width).transpose(1, 2)


def _empty_outputs(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    B, H, N, _ = q.shape
    return _empty_by_position(q, H, N, v.shape[-1]), q.new_empty(B, H, N, dtype=torch.float32)


def _blocks(kernel: str, q: Tensor, v: Tensor) -> dict[str, Any]:
    """Block sizes and the compiler's options."""
    K, V = q.shape[-1], v.shape[-1]
    least = max(32, triton.next_power_of_2(max(K, V)) // 2)  # with less of one than of the other, layouts take more
    BK, BV = (max(least, triton.next_power_of_2(width)) for width in (K, V))
    BM, BN, warps, stages = TILES[q.itemsize, max(64, BK, BV)][kernel]
    return {
        "K": K,
        "BK": BK,
        "V": V,
        "BV": BV,
        "BM": BM,
        "BN": BN,
        "PRECISION": "tf32x3" if q.dtype == torch.float32 else "ieee",
        "num_warps": warps,
        "num_stages": stages,
    }
