"""Triton kernels for the short causal convolution of `kernels/short_conv.py`, with what follows it in a mixer.

Forward, a program takes so many positions of so many channels, and a position is read from memory once and k - 1 times
more from the cache. A step moves the k - 1 inputs before it up by one. Backward, with z the convolution's output and g
the gate, a warp walks along a stretch of positions and keeps the last k of x and of dz in registers, so that it reads
each position once, and k - 1 more after its stretch:

    s_t = sigmoid(z_t)     dz_t = dy_t g_t (s_t + z_t s_t (1 - s_t))     dw_i = sum over t of dz_t x_{t-k+1+i}
    dg_t = dy_t z_t s_t    dx_t = sum over i < k of w_i dz_{t+k-1-i}     dbias = sum over t of dz_t

Sums over the positions of a program's stretches are made in it, those over programs by a sum after the kernel, so that
results do not vary from run to run.

With M outputs of e bytes the forward pass moves 2 M e bytes, 3 M e with a gate, and does 2 k operations an output. The
backward pass moves 3 M e, or 5 M e, and 8 k bytes of sums for every 256 positions of a channel; it does 6 k operations
an output and some 30 for silu. A step moves the bytes of the k - 1 inputs before it twice. All are bound by the bytes.
"""

# Triton has no types for launches, nor for loops that it unrolls.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

POSITIONS, CHANNELS = 16, 128
"""Of a program of the parallel form, 16 elements a thread."""

STEP_CHANNELS = 512
"""Of a program of a step, 4 a thread."""

STRETCHES, BACKWARD_CHANNELS = 4, 64
"""Of a program of the backward pass: each stretch is a warp's, which reads 128 bytes at once in bfloat16."""

AHEAD = 8
"""Positions of a stretch whose inputs are under way at once."""


def stretch(N: int) -> int:
    """Positions T that a warp of the backward pass walks along, about 64: few sums for all, enough warps for a GPU."""
    programs = -(-N // (64 * STRETCHES))
    return max(16, -(-N // (programs * STRETCHES)))


@triton.jit
def _sigmoid(z):
    return 1 / (1 + tl.exp(-z))


@triton.jit
def _activated(z, gate_ptr, inside, SILU: tl.constexpr, GATED: tl.constexpr):
    """What a mixer makes of the convolution's output."""
    if SILU:
        z *= _sigmoid(z)
    if GATED:
        z *= tl.load(gate_ptr, mask=inside, other=0.0).to(tl.float32)
    return z


@triton.jit
def _input(x_ptr, past_ptr, t, N, xn, pn, in_d, may_be_past, k: tl.constexpr):
    """x at positions t, from -(k - 1) on; those below 0 are the past's, where t may be there and there is one."""
    x = tl.load(x_ptr + t * xn, mask=(t >= 0) & (t < N) & in_d, other=0.0).to(tl.float32)
    if may_be_past:
        x += tl.load(past_ptr + (t + k - 1) * pn, mask=(t < 0) & in_d, other=0.0).to(tl.float32)
    return x


@triton.jit
def _prefill(
    x_ptr, w_ptr, bias_ptr, past_ptr, y_ptr, after_ptr, N, D, sequences, xb, xn, pb, pn,
    k: tl.constexpr, BIASED: tl.constexpr, PAST: tl.constexpr, SILU: tl.constexpr, GATED: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """BN positions of BD channels of one sequence; the last positions' program writes the inputs that are kept."""
    b = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)[:, None]
    d = tl.program_id(1) * BD + tl.arange(0, BD)[None, :]
    in_d, own = d < D, b // sequences * D + d
    x_ptr += b * xb + d
    if PAST:
        past_ptr += b * pb + d
    y = tl.zeros([BN, BD], tl.float32)
    if BIASED:
        y += tl.load(bias_ptr + own, mask=in_d, other=0.0).to(tl.float32)
    for i in tl.static_range(k):
        x = _input(x_ptr, past_ptr, n + i - (k - 1), N, xn, pn, in_d, PAST and tl.program_id(0) == 0, k)
        y += x * tl.load(w_ptr + own * k + i, mask=in_d, other=0.0).to(tl.float32)
    inside = (n < N) & in_d
    y = _activated(y, x_ptr + n * xn + D, inside, SILU, GATED)
    tl.store(y_ptr + (b * N + n) * D + d, y.to(y_ptr.dtype.element_ty), mask=inside)
    if tl.program_id(0) == tl.num_programs(0) - 1:
        j = tl.arange(0, BP)[:, None]
        keeps = (j < k - 1) & in_d
        kept = _input(x_ptr, past_ptr, (N - (k - 1) + j).to(tl.int64), N, xn, pn, keeps, PAST, k)
        tl.store(after_ptr + (b * (k - 1) + j) * D + d, kept.to(after_ptr.dtype.element_ty), mask=keeps)


@triton.jit
def _ahead(ptr, n, until, step, in_d, U: tl.constexpr):
    """What U positions from n on hold, 0 from `until` on; all is under way before any of it is used."""
    loaded = ()
    for i in tl.static_range(U):
        loaded += (tl.load(ptr + i * step, mask=(n + i < until) & in_d, other=0.0),)
    return loaded


@triton.jit
def _weighted(y, w, xs, k: tl.constexpr):
    """y + sum over i < k of w_i x_i."""
    for i in tl.static_range(k):
        y += w[i] * xs[i]
    return y


@triton.jit
def _added(sums, dz, xs, k: tl.constexpr):
    """dz x_i on top of the i-th of k sums."""
    added = ()
    for i in tl.static_range(k):
        added += (sums[i] + dz * xs[i],)
    return added


@triton.jit
def _silu(z):
    """Of z, and its derivative."""
    s = _sigmoid(z)
    y = z * s
    return y, s + y * (1 - s)


@triton.jit
def _backward(
    x_ptr, w_ptr, bias_ptr, past_ptr, dy_ptr, dafter_ptr, dx_ptr, dpast_ptr, sums_ptr,
    N, D, T, sequences, xb, xn, pb, pn, yb, yn,
    k: tl.constexpr, BIASED: tl.constexpr, PAST: tl.constexpr, SILU: tl.constexpr, GATED: tl.constexpr,
    AFTER: tl.constexpr, DPAST: tl.constexpr, R: tl.constexpr, BD: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """R stretches of T positions of BD channels of one sequence, a warp each; sums [., D k], of the bias [., D] behind.

    At position n of a walk dz_n is known, and with it dx of position n - (k - 1), which below 0 is that of the past.
    """
    # Programs that run at a time cover whole rows of memory, since those of one row follow each other.
    blocks, parts = tl.cdiv(N, R * T), tl.cdiv(D, BD)
    program, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    b, block = (program // blocks).to(tl.int64), program % blocks
    first = (block * R + tl.arange(0, R)[:, None]) * T  # [R, 1]
    last = tl.minimum(first + T, N)
    d = part * BD + tl.arange(0, BD)[None, :]
    in_d, own = d < D, b // sequences * D + d
    width = 2 * D if GATED else D
    x_ptr, dy_ptr, dx_ptr = x_ptr + b * xb + d, dy_ptr + b * yb + d, dx_ptr + b * N * width + d
    of_past = b * (k - 1) * D + d
    if PAST:
        past_ptr += b * pb + d
    bias = tl.zeros([1, BD], tl.float32)
    if BIASED:
        bias += tl.load(bias_ptr + own, mask=in_d, other=0.0).to(tl.float32)
    zeros = tl.zeros([R, BD], tl.float32)
    w, dw, dbias, xs, dzs = (), (zeros,) * k, zeros, (), (zeros,) * (k - 1)
    for i in tl.static_range(k):
        w += (tl.load(w_ptr + own * k + i, mask=in_d, other=0.0).to(tl.float32),)
    for i in tl.static_range(k - 1):
        t = (first + i - (k - 1)).to(tl.int64)
        xs += (_input(x_ptr, past_ptr, t, N, xn, pn, in_d, PAST and block == 0, k),)
    for walked in range(0, T + k - 1, U):
        start, until = first + walked, tl.minimum(last + k - 1, N)
        at = start.to(tl.int64)
        x_at, dy_at, dx_at = x_ptr + at * xn, dy_ptr + at * yn, dx_ptr + at * width
        x_ahead, dy_ahead = _ahead(x_at, start, until, xn, in_d, U), _ahead(dy_at, start, until, yn, in_d, U)
        gate_ahead = _ahead(x_at + D, start, until, xn, in_d, U) if GATED else ()
        for i in tl.static_range(U):
            n = start + i
            xs += (x_ahead[i].to(tl.float32),)
            z, dz = _weighted(bias, w, xs, k), dy_ahead[i].to(tl.float32)
            y, slope = _silu(z) if SILU else (z, 1.0)
            if GATED:
                tl.store(dx_at + i * width + D, (dz * y).to(dx_ptr.dtype.element_ty), mask=(n < last) & in_d)
                dz *= gate_ahead[i].to(tl.float32)
            dz *= slope
            dzs += (dz,)
            dz = tl.where(n < last, dz, 0.0)
            dx = zeros
            if AFTER:
                read = (n >= N) & (n < N + k - 1) & in_d
                dx = tl.load(dafter_ptr + of_past + (n - N) * D, mask=read, other=0.0).to(tl.float32)
            dx, dw, dbias = _weighted(dx, w[::-1], dzs, k), _added(dw, dz, xs, k), dbias + dz
            xs, dzs = xs[1:], dzs[1:]
            inside = (n >= first + k - 1) & (n < last + k - 1) & in_d
            tl.store(dx_at + (i - (k - 1)) * width, dx.to(dx_ptr.dtype.element_ty), mask=inside)
            if DPAST:
                tl.store(dpast_ptr + of_past + n * D, dx.to(dpast_ptr.dtype.element_ty), mask=(n < k - 1) & in_d)
    sums_ptr += program.to(tl.int64) * D * (k + BIASED)
    for i in tl.static_range(k):
        tl.store(sums_ptr + d * k + i, tl.sum(dw[i], 0)[None, :], mask=in_d)
    if BIASED:
        tl.store(sums_ptr + D * k + d, tl.sum(dbias, 0)[None, :], mask=in_d)


@triton.jit
def _step(
    x_ptr, w_ptr, bias_ptr, past_ptr, y_ptr, D, xb,
    k: tl.constexpr, BIASED: tl.constexpr, SILU: tl.constexpr, GATED: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """BD channels of one sequence, each input moved up by one place."""
    b = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = d < D
    past_ptr += b * (k - 1) * D + d
    x_ptr += b * xb + d
    new = tl.load(x_ptr, mask=inside, other=0.0)
    y = new.to(tl.float32) * tl.load(w_ptr + d * k + k - 1, mask=inside, other=0.0).to(tl.float32)
    if BIASED:
        y += tl.load(bias_ptr + d, mask=inside, other=0.0).to(tl.float32)
    for i in tl.static_range(k - 1):
        x = tl.load(past_ptr + i * D, mask=inside, other=0.0)
        y += x.to(tl.float32) * tl.load(w_ptr + d * k + i, mask=inside, other=0.0).to(tl.float32)
        if i > 0:
            tl.store(past_ptr + (i - 1) * D, x, mask=inside)
    tl.store(past_ptr + (k - 2) * D, new.to(past_ptr.dtype.element_ty), mask=inside)
    y = _activated(y, x_ptr + D, inside, SILU, GATED)
    tl.store(y_ptr + b * D + d, y.to(y_ptr.dtype.element_ty), mask=inside)


Gradients = tuple[Tensor, Tensor, Tensor]


@torch.library.custom_op("recallbench::short_conv", mutates_args=())
def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor | None, silu: bool, gated: bool
) -> tuple[Tensor, Tensor]:
    """Weights are [g, D, 1, k], biases [g, D], for the g groups of B / g sequences that follow each other."""
    (B, N, _), (groups, D, _, k) = x.shape, weight.shape
    y, after = _empty_outputs(x, weight, past)
    x, past = _side_by_side(x), None if past is None else _side_by_side(past)
    with torch.cuda.device_of(x):
        _prefill[(triton.cdiv(N, POSITIONS), triton.cdiv(D, CHANNELS), B)](
            x, weight.contiguous(), _contiguous(bias), past, y, after, N, D, B // groups, *_steps(x), *_steps(past),
            k, bias is not None, past is not None, silu, gated,
            POSITIONS, CHANNELS, triton.next_power_of_2(k - 1), num_warps=4,
        )  # fmt: skip
    return y, after


@_conv.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor | None, silu: bool, gated: bool
) -> tuple[Tensor, Tensor]:
    return _empty_outputs(x, weight, past)


@torch.library.custom_op("recallbench::short_conv_backward", mutates_args=())
def _conv_gradients(
    x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor | None, silu: bool, gated: bool,
    dy: Tensor, dafter: Tensor | None, wants_dpast: bool,
) -> Gradients:  # fmt: skip
    """The gradients of x, of past, empty unless wanted, and of the weights, behind them those of the biases."""
    (B, N, _), (groups, D, _, k) = x.shape, weight.shape
    dx, dpast, _ = _empty_gradients(x, weight, bias, past, wants_dpast)
    x, dy, past = _side_by_side(x), _side_by_side(dy), None if past is None else _side_by_side(past)
    T = stretch(N)
    programs = B * triton.cdiv(N, STRETCHES * T)
    sums = x.new_empty(programs, D * (k + (bias is not None)), dtype=torch.float32)
    with torch.cuda.device_of(x):
        _backward[(programs * triton.cdiv(D, BACKWARD_CHANNELS),)](
            x, weight.contiguous(), _contiguous(bias), past, dy, _contiguous(dafter), dx, dpast, sums,
            N, D, T, B // groups, *_steps(x), *_steps(past), *_steps(dy),
            k, bias is not None, past is not None, silu, gated, dafter is not None, wants_dpast,
            STRETCHES, BACKWARD_CHANNELS, AHEAD, num_warps=STRETCHES,
        )  # fmt: skip
    return dx, dpast, sums.unflatten(0, (groups, -1)).sum(1)


@_conv_gradients.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor | None, silu: bool, gated: bool,
    dy: Tensor, dafter: Tensor | None, wants_dpast: bool,
) -> Gradients:  # fmt: skip
    return _empty_gradients(x, weight, bias, past, wants_dpast)


def _empty_outputs(x: Tensor, weight: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
    (B, N, _), (_, D, _, k) = x.shape, weight.shape
    return x.new_empty(B, N, D), (x if past is None else past).new_empty(B, k - 1, D)


def _empty_gradients(
    x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor | None, wants_dpast: bool
) -> Gradients:
    groups, D, _, k = weight.shape
    dpast = past.new_empty(past.shape) if past is not None and wants_dpast else x.new_empty(0)
    sums = x.new_empty(groups, D * (k + (bias is not None)), dtype=torch.float32)
    return x.new_empty(x.shape), dpast, sums


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.silu, ctx.gated = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, dy: Tensor | None, dafter: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, bias, past = ctx.saved_tensors
    B, N, _ = x.shape
    dy = x.new_zeros(B, N, weight.shape[1]) if dy is None else dy
    wanted = past is not None and ctx.needs_input_grad[3]
    dx, dpast, sums = _conv_gradients(x, weight, bias, past, ctx.silu, ctx.gated, dy, dafter, wanted)
    dweight = sums[:, : weight[0].numel()].view(weight.shape).to(weight.dtype)
    dbias = None if bias is None else sums[:, weight[0].numel() :].to(bias.dtype)
    return dx, dweight, dbias, dpast if wanted else None, None, None


_conv.register_autograd(_gradients, setup_context=_save)


@_conv.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """Members are groups of sequences, each with its own weights."""
    *tensors, silu, gated = args
    merged = (
        t if t is None else (t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)
        for t, dim in zip(tensors, in_dims, strict=False)
    )
    y, after = (t.unflatten(0, (info.batch_size, -1)) for t in _conv(*merged, silu, gated))
    return (y, after), (0, 0)


@torch.library.custom_op("recallbench::short_conv_step", mutates_args={"past"})
def _conv_step(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, silu: bool, gated: bool) -> Tensor:
    D, _, k = weight.shape
    x = _side_by_side(x)
    y = x.new_empty(len(x), D)
    with torch.cuda.device_of(x):
        _step[(len(x), triton.cdiv(D, STEP_CHANNELS))](
            x, weight.contiguous(), _contiguous(bias), past, y, D, x.stride(0),
            k, bias is not None, silu, gated, STEP_CHANNELS, num_warps=4,
        )  # fmt: skip
    return y


@_conv_step.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, silu: bool, gated: bool) -> Tensor:
    return x.new_empty(len(x), len(weight))


def fused_short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor | None, silu: bool, gated: bool
) -> tuple[Tensor, Tensor]:
    """`kernels.short_conv.short_conv` on a GPU: outputs, and the last inputs in a new tensor; sums are in float32.

    Under `torch.func.vmap` it is one call for all members.

    **Raises** `ValueError` where shapes or devices do not fit together.
    """
    _check(x, weight, bias, past, gated)
    return _conv(x, weight.unsqueeze(0), None if bias is None else bias.unsqueeze(0), past, silu, gated)


def fused_short_conv_step(
    x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, silu: bool, gated: bool
) -> Tensor:
    """`kernels.short_conv.short_conv_step` on a GPU: the output, `past` updated in place.

    **Raises** `ValueError` where shapes or devices do not fit together.
    """
    _check(x.unsqueeze(1), weight, bias, past, gated)
    return _conv_step(x, weight, bias, past, silu, gated)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor | None, gated: bool) -> None:
    (B, N, width), k = x.shape, weight.shape[-1]
    D = width // 2 if gated else width
    shapes = {"x": (B, N, 2 * D if gated else D), "weight": (D, 1, k), "bias": (D,), "past": (B, k - 1, D)}
    for (name, shape), t in zip(shapes.items(), (x, weight, bias, past), strict=True):
        if t is None:
            continue
        if t.shape != shape:
            raise ValueError(f"short_conv got {name} {list(t.shape)}, and takes {list(shape)}")
        if t.device != x.device:
            raise ValueError(f"short_conv got x on {x.device} and {name} on {t.device}, and takes one device")


def _side_by_side(t: Tensor) -> Tensor:
    """Any strides but that of channels, which is 1."""
    return t if t.stride(-1) == 1 else t.contiguous()


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _steps(t: Tensor | None) -> tuple[int, int]:
    """From a sequence to the next and from a position to the next."""
    return (0, 0) if t is None else (t.stride(0), t.stride(1))
