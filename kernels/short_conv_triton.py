"""Triton kernels for the short causal convolution of `kernels/short_conv.py`, with what follows it in a mixer.

A program takes so many positions of so many channels, and a position is read from memory once and k - 1 times more from
the cache. Each element of x takes 2 k operations, its own bytes twice, read and written, and those of its gate; a step
takes the bytes of the k - 1 inputs before it twice more, as they move up by one. Both are bound by the bytes. There is
no backward pass: in training a compiler joins the reference with its neighbours.
"""

# Triton has no types for launches, nor for loops that it unrolls.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

POSITIONS, CHANNELS = 16, 128
"""Of a program of the parallel form, 16 elements a thread."""

STEP_CHANNELS = 512
"""Of a program of a step, 4 a thread."""


@triton.jit
def _activated(y, gate_ptr, at, inside, SILU: tl.constexpr, GATED: tl.constexpr):
    """What a mixer makes of the convolution's output."""
    if SILU:
        y = y / (1 + tl.exp(-y))
    if GATED:
        y *= tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
    return y


@triton.jit
def _prefill(
    x_ptr, w_ptr, bias_ptr, past_ptr, gate_ptr, y_ptr, after_ptr, N, D, xb, xn, pb, pn, gb, gn,
    k: tl.constexpr, BIASED: tl.constexpr, SILU: tl.constexpr, GATED: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """BN positions of BD channels of one sequence; the last positions' program writes the inputs that are kept."""
    b = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)[:, None]
    d = tl.program_id(1) * BD + tl.arange(0, BD)[None, :]
    x_ptr, past_ptr = x_ptr + b * xb + d, past_ptr + b * pb + d
    y = tl.zeros([BN, BD], tl.float32)
    if BIASED:
        y += tl.load(bias_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    for i in tl.static_range(k):
        t = n + i - (k - 1)
        x = tl.load(x_ptr + t * xn, mask=(t >= 0) & (t < N) & (d < D), other=0.0).to(tl.float32)
        if tl.program_id(0) == 0:
            x += tl.load(past_ptr + (t + k - 1) * pn, mask=(t < 0) & (d < D), other=0.0).to(tl.float32)
        y += x * tl.load(w_ptr + d * k + i, mask=d < D, other=0.0).to(tl.float32)
    inside = (n < N) & (d < D)
    y = _activated(y, gate_ptr, b * gb + n * gn + d, inside, SILU, GATED)
    tl.store(y_ptr + (b * N + n) * D + d, y.to(y_ptr.dtype.element_ty), mask=inside)
    if tl.program_id(0) == tl.num_programs(0) - 1:
        j = tl.arange(0, BP)[:, None]
        place = N - (k - 1) + j
        keeps = (j < k - 1) & (d < D)
        kept = tl.load(x_ptr + place * xn, mask=keeps & (place >= 0), other=0.0).to(tl.float32)
        kept += tl.load(past_ptr + (place + k - 1) * pn, mask=keeps & (place < 0), other=0.0).to(tl.float32)
        tl.store(after_ptr + (b * (k - 1) + j) * D + d, kept.to(after_ptr.dtype.element_ty), mask=keeps)


@triton.jit
def _step(
    x_ptr, w_ptr, bias_ptr, past_ptr, gate_ptr, y_ptr, D, xb, gb,
    k: tl.constexpr, BIASED: tl.constexpr, SILU: tl.constexpr, GATED: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """BD channels of one sequence, each input moved up by one place."""
    b = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = d < D
    past_ptr += b * (k - 1) * D + d
    new = tl.load(x_ptr + b * xb + d, mask=inside, other=0.0)
    y = new.to(tl.float32) * tl.load(w_ptr + d * k + k - 1, mask=inside, other=0.0).to(tl.float32)
    if BIASED:
        y += tl.load(bias_ptr + d, mask=inside, other=0.0).to(tl.float32)
    for i in tl.static_range(k - 1):
        x = tl.load(past_ptr + i * D, mask=inside, other=0.0)
        y += x.to(tl.float32) * tl.load(w_ptr + d * k + i, mask=inside, other=0.0).to(tl.float32)
        if i > 0:
            tl.store(past_ptr + (i - 1) * D, x, mask=inside)
    tl.store(past_ptr + (k - 2) * D, new.to(past_ptr.dtype.element_ty), mask=inside)
    y = _activated(y, gate_ptr, b * gb + d, inside, SILU, GATED)
    tl.store(y_ptr + b * D + d, y.to(y_ptr.dtype.element_ty), mask=inside)


@torch.library.custom_op("recallbench::short_conv", mutates_args=())
def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, silu: bool, gate: Tensor | None
) -> tuple[Tensor, Tensor]:
    (B, N, D), k = x.shape, weight.shape[-1]
    x, past = _side_by_side(x), _side_by_side(past)
    gate_ = None if gate is None else _side_by_side(gate)
    y, after = x.new_empty(B, N, D), past.new_empty(B, k - 1, D)
    with torch.cuda.device_of(x):
        _prefill[(triton.cdiv(N, POSITIONS), triton.cdiv(D, CHANNELS), B)](
            x, weight.contiguous(), bias, past, gate_, y, after, N, D, *x.stride()[:2], *past.stride()[:2],
            *((0, 0) if gate_ is None else gate_.stride()[:2]),
            k, bias is not None, silu, gate is not None,
            POSITIONS, CHANNELS, triton.next_power_of_2(k - 1), num_warps=4,
        )  # fmt: skip
    return y, after


@_conv.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, silu: bool, gate: Tensor | None
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), past.new_empty(past.shape)


@torch.library.custom_op("recallbench::short_conv_step", mutates_args={"past"})
def _conv_step(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, silu: bool, gate: Tensor | None) -> Tensor:
    (B, D), k = x.shape, weight.shape[-1]
    x, gate = _side_by_side(x), None if gate is None else _side_by_side(gate)
    y = x.new_empty(B, D)
    with torch.cuda.device_of(x):
        _step[(B, triton.cdiv(D, STEP_CHANNELS))](
            x, weight.contiguous(), bias, past, gate, y, D, x.stride(0), 0 if gate is None else gate.stride(0),
            k, bias is not None, silu, gate is not None, STEP_CHANNELS, num_warps=4,
        )  # fmt: skip
    return y


@_conv_step.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, silu: bool, gate: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


def fused_short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, silu: bool, gate: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`kernels.short_conv.short_conv` on a GPU: outputs, and the last inputs in a new tensor; sums are in float32.

    **Raises** `ValueError` where shapes or devices do not fit together.
    """
    _check(x, weight, bias, past, gate)
    return _conv(x, weight, bias, past, silu, gate)


def fused_short_conv_step(
    x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, silu: bool, gate: Tensor | None
) -> Tensor:
    """`kernels.short_conv.short_conv_step` on a GPU: the output, `past` updated in place.

    **Raises** `ValueError` where shapes or devices do not fit together.
    """
    _check(x.unsqueeze(1), weight, bias, past, None if gate is None else gate.unsqueeze(1))
    return _conv_step(x, weight, bias, past, silu, gate)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, gate: Tensor | None) -> None:
    (B, N, D), k = x.shape, weight.shape[-1]
    shapes = {"weight": (D, 1, k), "bias": (D,), "past": (B, k - 1, D), "gate": (B, N, D)}
    for (name, shape), t in zip(shapes.items(), (weight, bias, past, gate), strict=True):
        if t is None:
            continue
        if t.shape != shape:
            raise ValueError(f"short_conv got {name} {list(t.shape)}, and takes {list(shape)}")
        if t.device != x.device:
            raise ValueError(f"short_conv got x on {x.device} and {name} on {t.device}, and takes one device")


def _side_by_side(t: Tensor) -> Tensor:
    """Any strides but that of channels, which is 1."""
    return t if t.stride(-1) == 1 else t.contiguous()
