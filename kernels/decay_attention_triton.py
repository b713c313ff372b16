"""Triton kernels for linear attention with one decay a head, forward and backward, of `kernels/decay_attention.py`.

As in section 6 of Dao and Gu 2024, arXiv 2405.21060, a program takes one head of one sequence in chunks of C positions.
Its decays, scores [C, C] and state [K, V] stay on the chip: with l_i the sum of log a from a chunk's start through i
and L that of the whole chunk,

    y_i = sum over j <= i of d_ij (q_i . k_j) v_j + exp(l_i) q_i S,   d_ij = exp(l_i - l_j)
    S <- exp(L) S + sum over j of exp(L - l_j) k_j v_j^T.

The backward pass goes through the chunks from the last to the first with dS, the gradient of the state after a chunk,
and finds the states before them saved. With w_ij = d_ij (dy_i . v_j) for j <= i, and what the state has part in last,

    dq_i = sum over j of w_ij k_j + exp(l_i) S dy_i
    dk_j = sum over i of w_ij q_i + exp(L - l_j) dS v_j
    dv_j = sum over i of d_ij (q_i . k_j) dy_i + exp(L - l_j) dS^T k_j
    dS <- exp(L) dS + sum over i of exp(l_i) q_i dy_i^T.

The decay at s multiplies what comes from before s to s or later. So d log a_s is the sum of q_i . dq_i over i >= s,
less that of k_j . dk_j within the chunk over j >= s, plus that of k_j . dk_j through dS over j < s, plus exp(L) S . dS:
no difference is taken of sums that go beyond a chunk.

Values are cut into blocks, each as good as a head of its own. With R = H / G heads a group and e bytes an element, a
position and head of one block move, forward, e (2 V + 2 K / R) bytes and take 2 (C (K + V) + 2 K V) operations.
Backward they move e (3 V + 2 K + 2 K / R) bytes, of which the 2 K are read again where heads are summed, and take
2 (C (3 K + 2 V) + 4 K V) operations. The states before chunks are e K V / C bytes more, each way. In registers states
are turned, [V, K], so that products that make them have 64 rows, as many as a group of four warps multiplies at once.
"""

# Triton has no types for launches, nor for functions of kernels that return several tensors.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.taylor_sums_triton import by_rows, ceil, rows

LOG2E = tl.constexpr(1.4426950408889634)

LOWEST = tl.constexpr(-200.0)
"""Of what decays by less than this, float32 has nothing left; finite, so that no difference is of two infinities."""

THREE = 168
"""Registers a thread, with which a processor has them for three programs of four warps."""


@triton.jit
def _place(H, G, V: tl.constexpr, BV: tl.constexpr):
    """Sequence, head, its group, its block of values, and the number of this head and block in the group."""
    blocks, R = tl.cdiv(V, BV), H // G
    block, h, b = tl.program_id(0) % blocks, tl.program_id(0) // blocks % H, tl.program_id(0) // blocks // H
    return tl.cast(b, tl.int64), tl.cast(h, tl.int64), h // R, block, h % R * blocks + block


@triton.jit
def _decays(log_decay_ptr, n, inside, stride):
    """log2 of the decays from a chunk's start as the sum of two vectors [C], so that differences of it have all digits.

    **Returns** these, the decays from the start and to the end [C], and that over all of the chunk.
    """
    step = tl.load(log_decay_ptr + n * stride, mask=inside, other=0.0).to(tl.float64)
    step = tl.where(step < LOWEST, LOWEST, step) * LOG2E
    through, total = tl.cumsum(step, 0), tl.sum(step, 0)
    high = through.to(tl.float32)
    low = (through - high).to(tl.float32)
    return high, low, tl.exp2(high), tl.exp2((total - through).to(tl.float32)), tl.exp2(total.to(tl.float32))


@triton.jit
def _between(s, high, low, later):
    """The decays between the positions of a chunk [C, C], from columns to rows `later` than they, or no earlier.

    They begin with a 0 of the scores s, since without it the compiler lays them out in another way and moves them all.
    """
    log = 0.0 * s + high[:, None] - high[None, :] + low[:, None] - low[None, :]
    return tl.where(later, tl.exp2(log), 0.0)


@triton.jit
def _by_state(x, S, decay, HAS_PAST: tl.constexpr, PRECISION: tl.constexpr):
    """What the rows x have through a state S, each by a decay of its own: nothing where there is no past."""
    if HAS_PAST:
        return tl.dot(x, S, input_precision=PRECISION) * decay[:, None]
    return tl.zeros([x.shape[0], S.shape[1]], tl.float32)


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, log_decay_ptr, state_ptr, y_ptr, final_ptr, states_ptr,
    H, G, N, qb, qg, qn, kb, kg, kn, vb, vh, vn, ab, ah, an, yb, yh, yn,
    K: tl.constexpr, BK: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    HAS_PAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All chunks of a head and block of values, from the first to the last, and the states before them to `states`."""
    b, h, g, block, _ = _place(H, G, V, BV)
    c, d, v = tl.arange(0, C), tl.arange(0, BK), block * BV + tl.arange(0, BV)
    q_ptr, k_ptr, v_ptr = q_ptr + b * qb + g * qg, k_ptr + b * kb + g * kg, v_ptr + b * vb + h * vh
    log_decay_ptr, y_ptr = log_decay_ptr + b * ab + h * ah, y_ptr + b * yb + h * yh
    at, to_kept, of_state = (
        d[None, :] * V + v[:, None],
        d[None, :] + v[:, None] * K,
        (d < K)[None, :] & (v < V)[:, None],
    )
    GIVEN: tl.constexpr = state_ptr is not None
    S = tl.zeros([BV, BK], tl.float32)
    if GIVEN:
        S = tl.load(state_ptr + (b * H + h) * K * V + at, mask=of_state, other=0.0).to(tl.float32)
    kept = tl.cdiv(N, C) - 1 + GIVEN
    for first in range(0, N, C):
        n = first + c
        inside = n < N
        q, k, value = (
            rows(q_ptr, n, inside, qn, d, K),
            rows(k_ptr, n, inside, kn, d, K),
            rows(v_ptr, n, inside, vn, v, V),
        )
        high, low, from_start, to_end, over = _decays(log_decay_ptr, n, inside, an)
        s = tl.dot(q, k.T, input_precision=PRECISION)
        s = (s * _between(s, high, low, c[:, None] >= c[None, :])).to(q.dtype)
        y = _by_state(q, S.to(q.dtype).T, from_start, HAS_PAST, PRECISION)
        y = tl.dot(s, value, y, input_precision=PRECISION)
        if states_ptr is not None:
            before = first // C - 1 + GIVEN
            to = states_ptr + ((b * H + h) * kept + before) * K * V + to_kept
            tl.store(to, S.to(states_ptr.dtype.element_ty), mask=of_state & (before >= 0))
        if HAS_PAST:
            left = (k * to_end[:, None]).to(k.dtype)
            S = tl.dot(value.T, left, S * over, input_precision=PRECISION)
        there = inside[:, None] & (v < V)[None, :]
        tl.store(y_ptr + n[:, None] * yn + v[None, :], y.to(y_ptr.dtype.element_ty), mask=there)
    if GIVEN:
        tl.store(final_ptr + (b * H + h) * K * V + at, S, mask=of_state)


@triton.jit
def _backward(
    q_ptr, k_ptr, v_ptr, log_decay_ptr, states_ptr, dy_ptr, dfinal_ptr,
    dq_ptr, dk_ptr, dv_ptr, dlog_decay_ptr, dstate_ptr,
    H, G, N, qb, qg, qn, kb, kg, kn, vb, vh, vn, ab, ah, an, dyb, dyh, dyn, dvb, dvh, dvn,
    K: tl.constexpr, BK: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    HAS_PAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All chunks of a head and block of values, from the last to the first; dq, dk and dlog_decay are parts of sums."""
    b, h, g, block, part = _place(H, G, V, BV)
    B = tl.num_programs(0) // (H * tl.cdiv(V, BV))
    c, d, v = tl.arange(0, C), tl.arange(0, BK), block * BV + tl.arange(0, BV)
    q_ptr, k_ptr, v_ptr = q_ptr + b * qb + g * qg, k_ptr + b * kb + g * kg, v_ptr + b * vb + h * vh
    log_decay_ptr, dy_ptr, dv_ptr = (
        log_decay_ptr + b * ab + h * ah,
        dy_ptr + b * dyb + h * dyh,
        dv_ptr + b * dvb + h * dvh,
    )
    own = (part * B + b) * N * G * K + g * K
    dq_ptr, dk_ptr, dlog_decay_ptr = dq_ptr + own, dk_ptr + own, dlog_decay_ptr + ((block * B + b) * H + h) * N
    at, to_kept, of_state = (
        d[None, :] * V + v[:, None],
        d[None, :] + v[:, None] * K,
        (d < K)[None, :] & (v < V)[:, None],
    )
    GIVEN: tl.constexpr = dstate_ptr is not None
    dS = tl.zeros([BV, BK], tl.float32)
    if dfinal_ptr is not None:
        dS = tl.load(dfinal_ptr + (b * H + h) * K * V + at, mask=of_state, other=0.0).to(tl.float32)
    chunks = tl.cdiv(N, C)
    for done in range(chunks):
        chunk = chunks - 1 - done
        n = chunk * C + c
        inside = n < N
        q, k, value = (
            rows(q_ptr, n, inside, qn, d, K),
            rows(k_ptr, n, inside, kn, d, K),
            rows(v_ptr, n, inside, vn, v, V),
        )
        dy = rows(dy_ptr, n, inside, dyn, v, V)
        high, low, from_start, to_end, over = _decays(log_decay_ptr, n, inside, an)
        S, after, through = dS, dS.to(k.dtype), 0.0
        if HAS_PAST:
            before = chunk - 1 + GIVEN
            past = states_ptr + ((b * H + h) * (chunks - 1 + GIVEN) + before) * K * V + to_kept
            S = tl.load(past, mask=of_state & (before >= 0), other=0.0)
            through = over * tl.sum(tl.sum(S.to(tl.float32) * dS, 1), 0)
            read = (q * from_start[:, None]).to(q.dtype)
            dS = tl.dot(dy.T, read, dS * over, input_precision=PRECISION)
        of_keys, of_values = inside[:, None] & (d < K)[None, :], inside[:, None] & (v < V)[None, :]
        to_keys = n[:, None] * (G * K) + d[None, :]
        # Keys down and queries across, so that of the products that take these only one takes them turned. Each
        # gradient is stored as soon as it is there, and then takes no more registers.
        s = tl.dot(k, q.T, input_precision=PRECISION)
        between = _between(s, -high, -low, c[None, :] >= c[:, None])
        s = (s * between).to(q.dtype)
        dv = tl.dot(s, dy, _by_state(k, after.T, to_end, HAS_PAST, PRECISION), input_precision=PRECISION)
        tl.store(dv_ptr + n[:, None] * dvn + v[None, :], dv.to(dv_ptr.dtype.element_ty), mask=of_values)
        w = (tl.dot(value, dy.T, input_precision=PRECISION) * between).to(q.dtype)
        dq = tl.dot(w.T, k, _by_state(dy, S.to(dy.dtype), from_start, HAS_PAST, PRECISION), input_precision=PRECISION)
        tl.store(dq_ptr + to_keys, dq.to(dq_ptr.dtype.element_ty), mask=of_keys)
        dk = tl.dot(w, q, input_precision=PRECISION)
        later = tl.sum(q * dq, 1) - tl.sum(k * dk, 1)
        if HAS_PAST:
            dk_after = _by_state(value, after, to_end, HAS_PAST, PRECISION)
            earlier = tl.sum(k * dk_after, 1)
            dk += dk_after
            later -= earlier
            through += tl.sum(earlier, 0)
        tl.store(dk_ptr + to_keys, dk.to(dk_ptr.dtype.element_ty), mask=of_keys)
        tl.store(dlog_decay_ptr + n, tl.cumsum(later, 0, reverse=True) + through, mask=inside)
    if GIVEN:
        tl.store(dstate_ptr + (b * H + h) * K * V + at, dS, mask=of_state)


Outputs = tuple[Tensor, Tensor, Tensor]
"""y [B, H, N, V], the final state [B, H, K, V] where one was given, and the states before chunks [B, H, ., K, V]."""


@torch.library.custom_op("recallbench::decay_attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None, keep: bool) -> Outputs:
    q, k, v = by_rows(q, k, v)
    (B, H, N, V), G, cut = v.shape, q.shape[1], _cut(q, v)
    y, final, states = _empty_outputs(q, v, state, keep)
    state = None if state is None else state.contiguous()
    few = cut["num_warps"] == 4 and q.itemsize == 2
    with torch.cuda.device_of(q):
        _forward[(B * H * ceil(V, cut["BV"]),)](
            q, k, v, log_decay, state, y, final, states if keep else None,
            H, G, N, *_strides(q, k, v, log_decay, y), HAS_PAST=_has_past(N, cut, state),
            **cut, maxnreg=THREE if few else None,
        )  # fmt: skip
    return y, final, states


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None, keep: bool) -> Outputs:
    return _empty_outputs(q, v, state, keep)


Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Parts of dq and dk [., B, N, G, K], dv [B, H, N, V], parts of dlog_decay [., B, H, N], dstate [B, H, K, V]."""


@torch.library.custom_op("recallbench::decay_attention_backward", mutates_args=())
def _gradients(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None, states: Tensor, dy: Tensor,
    dfinal: Tensor | None,
) -> Gradients:  # fmt: skip
    q, k, v, dy = by_rows(q, k, v, dy)
    (B, H, N, V), G, cut = v.shape, q.shape[1], _cut(q, v)
    dq, dk, dv, dlog_decay, dstate = _empty_gradients(q, v, state)
    has_past = _has_past(N, cut, state)
    few = cut["num_warps"] == 4 and q.itemsize == 2 and not has_past
    with torch.cuda.device_of(q):
        _backward[(B * H * ceil(V, cut["BV"]),)](
            q, k, v, log_decay, states, dy, None if dfinal is None else dfinal.contiguous(),
            dq, dk, dv, dlog_decay, None if state is None else dstate,
            H, G, N, *_strides(q, k, v, log_decay, dy, dv), HAS_PAST=has_past,
            **cut, maxnreg=THREE if few else None,
        )  # fmt: skip
    return dq, dk, dv, dlog_decay, dstate


@_gradients.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None, states: Tensor, dy: Tensor,
    dfinal: Tensor | None,
) -> Gradients:  # fmt: skip
    return _empty_gradients(q, v, state)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    *tensors, _ = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[2])


def _backward_of(ctx: Any, dy: Tensor | None, dfinal: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    """Sums over heads and blocks are left to the compiler, which joins them with what comes after."""
    q, k, v, log_decay, state, states = ctx.saved_tensors
    dy = torch.zeros_like(v) if dy is None else dy
    dq, dk, dv, dlog_decay, dstate = _gradients(
        q, k, v, log_decay, state, states, dy, None if state is None else dfinal
    )
    dq, dk, dlog_decay = (t.squeeze(0) if len(t) == 1 else t.sum(0) for t in (dq, dk, dlog_decay))
    dstate = None if state is None else dstate.to(state.dtype)
    return dq.transpose(1, 2), dk.transpose(1, 2), dv, dlog_decay.to(log_decay.dtype), dstate, None


_attention.register_autograd(_backward_of, setup_context=_save)


@_attention.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Outputs, tuple[int, int, int]]:
    """Members are so many more sequences."""
    *tensors, keep = args
    merged = [
        None if t is None else (t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)
        for t, dim in zip(tensors, in_dims, strict=False)
    ]
    y, final, states = (t.unflatten(0, (info.batch_size, -1)) for t in _attention(*merged, keep))
    return (y, final, states), (0, 0, 0)


def fused_decay_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`kernels.decay_attention.decay_linear_attention` on a GPU: outputs and, where a state is given, the final one.

    Any strides, sums in float32; no size may be 0. Without `state` the second is of no elements, since who starts from
    nothing seldom goes on.
    **Raises** `ValueError` where shapes, dtypes or devices do not fit together.
    """
    check(q, k, v, log_decay, state)
    return _attention(q, k, v, log_decay, state, torch.is_grad_enabled())[:2]


def check(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None) -> None:
    """**Raises** `ValueError` where shapes, dtypes or devices do not fit together."""
    if q.ndim != 4 or v.ndim != 4:
        raise ValueError(
            f"decay_attention takes q [B, G, N, K] and v [B, H, N, V], not {list(q.shape)} and {list(v.shape)}"
        )
    (B, G, N, K), (_, H, _, V) = q.shape, v.shape
    shapes = {"k": (B, G, N, K), "v": (B, H, N, V), "log_decay": (B, H, N), "state": (B, H, K, V)}
    for (name, shape), t in zip(shapes.items(), (k, v, log_decay, state), strict=True):
        if t is None:
            continue
        if t.shape != shape:
            raise ValueError(
                f"decay_attention got {name} {list(t.shape)}, and takes {list(shape)} with q {[B, G, N, K]}"
            )
        if name in {"k", "v"} and t.dtype != q.dtype:
            raise ValueError(f"decay_attention got q in {q.dtype} and {name} in {t.dtype}, and takes one dtype")
        if t.device != q.device:
            raise ValueError(f"decay_attention got q on {q.device} and {name} on {t.device}, and takes one device")
    if H % G:
        raise ValueError(f"decay_attention got {H} heads of values, and takes a multiple of the {G} of keys")


def _cut(q: Tensor, v: Tensor) -> dict[str, Any]:
    """How the work is cut, and the compiler's options: at a time as much as the backward pass holds in registers."""
    K, V = q.shape[-1], v.shape[-1]
    if q.dtype == torch.float32:
        BK, most, C = max(32, triton.next_power_of_2(K)), 32, 16
    else:
        BK, most = max(16, triton.next_power_of_2(K)), 64
        C = 64 if BK <= 64 else 16
    return {
        "K": K, "BK": BK, "V": V, "BV": max(32, triton.next_power_of_2(min(V, most))), "C": C,
        "PRECISION": "tf32x3" if q.dtype == torch.float32 else "ieee",
        "num_warps": 4 if BK <= 32 else 8, "num_stages": 3,
    }  # fmt: skip


def _has_past(N: int, cut: dict[str, Any], state: Tensor | None) -> bool:
    """Whether any chunk has anything before it."""
    return state is not None or cut["C"] < N


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    """Of all dimensions but the last; 0 where the size is 1, as another may hide that rows start at multiples of 16."""
    return tuple(
        stride if size > 1 else 0 for t in tensors for size, stride in zip(t.shape[:3], t.stride(), strict=False)
    )


def _by_position(like: Tensor, H: int, width: int) -> Tensor:
    """[B, H, N, width] whose heads lie beside each other in memory, as projections make and take them."""
    return like.new_empty(len(like), like.shape[2], H, width).transpose(1, 2)


def _empty_outputs(q: Tensor, v: Tensor, state: Tensor | None, keep: bool) -> Outputs:
    (B, H, N, V), K, given = v.shape, q.shape[-1], state is not None
    kept = ceil(N, _cut(q, v)["C"]) - 1 + given if keep else 0
    return (
        _by_position(v, H, V),
        v.new_empty(B, H, K if given else 0, V, dtype=torch.float32),
        v.new_empty(B, H, kept, K, V, dtype=q.dtype if q.dtype == torch.bfloat16 else torch.float32),
    )


def _empty_gradients(q: Tensor, v: Tensor, state: Tensor | None) -> Gradients:
    (B, G, N, K), (_, H, _, V) = q.shape, v.shape
    blocks = ceil(V, _cut(q, v)["BV"])
    dq, dk = (q.new_empty(H // G * blocks, B, N, G, K) for _ in range(2))
    return (
        dq,
        dk,
        _by_position(v, H, V),
        q.new_empty(blocks, B, H, N, dtype=torch.float32),
        q.new_empty(B, H, 0 if state is None else K, V, dtype=torch.float32),
    )
