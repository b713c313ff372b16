"""Triton kernels for the cross-entropy of a linear head: attention over the vocabulary.

The gradient of a row's loss is a softmax-weighted mean of rows of W less the target's, so the forward pass is that of
attention with queries x and with W as keys and as values (Dao et al. 2022, arXiv 2205.14135): it goes once over W and
leaves the loss, its logarithm of the sum and the row's gradient, [R, D]. A program keeps that of its rows in registers,
which bounds D. Where rows are few, several programs share a pass over W, each a span of tokens, and what they find is
merged after. The backward pass scales that gradient, and goes once over x for the gradient of W, the logits computed
again.

With R rows, D features and V tokens: 4 R V D operations forward and 4 R V D backward, of 2 R V D each at least for the
logits alone; bytes are those of x, W and their gradients, as the R V logits stay on the chip.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 132
"""So many share a pass over W, one for each processor of an H100, where it has the tokens to go round."""

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _partial(
    x_ptr, w_ptr, high_ptr, total_ptr, mean_ptr, best_ptr,
    R, V, span,
    D: tl.constexpr, BR: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr,
    GRADIENT: tl.constexpr, ANSWER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BR rows against a span of W, BV tokens at a time. Logarithms are to base 2, as the hardware's exponential is."""
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    d = tl.arange(0, BD)
    start = tl.program_id(1) * span
    x = tl.load(x_ptr + r[:, None] * D + d, mask=(r < R)[:, None] & (d < D), other=0.0)
    high = tl.full([BR], -float("inf"), tl.float32)
    total = tl.zeros([BR], tl.float32)
    mean = tl.zeros([BR, BD], tl.float32)
    best = tl.zeros([BR], tl.int32)
    for first in range(start, tl.minimum(start + span, V), BV):
        v = first + tl.arange(0, BV)
        w = tl.load(w_ptr + v[:, None] * D + d, mask=(v < V)[:, None] & (d < D), other=0.0)
        z = tl.dot(x, w.T, input_precision=PRECISION) * LOG2E  # [BR, BV]
        z = tl.where((v < V)[None, :], z, -float("inf"))
        if ANSWER:
            here, at = tl.max(z, 1, return_indices=True)
            best = tl.where(here > high, first + at, best)
        higher = tl.maximum(high, tl.max(z, 1))
        scale = tl.exp2(high - higher)
        p = tl.exp2(z - higher[:, None])
        total = total * scale + tl.sum(p, 1)
        if GRADIENT:
            mean = mean * scale[:, None] + tl.dot(p.to(w.dtype), w, input_precision=PRECISION)
        high = higher
    at = tl.program_id(1) * R + r
    tl.store(high_ptr + at, high, mask=r < R)
    tl.store(total_ptr + at, total, mask=r < R)
    if ANSWER:
        tl.store(best_ptr + at, best, mask=r < R)
    if GRADIENT:
        tl.store(mean_ptr + at[:, None] * D + d, mean, mask=(r < R)[:, None] & (d < D))


@triton.jit
def _merge(
    x_ptr, w_ptr, target_ptr, high_ptr, total_ptr, mean_ptr, best_ptr, loss_ptr, lse_ptr, dx_ptr, answer_ptr,
    R, spans,
    D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr, GRADIENT: tl.constexpr, ANSWER: tl.constexpr,
):  # fmt: skip
    """What BR rows come to over all spans: the loss, and its gradient or the token of the largest logit."""
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    d = tl.arange(0, BD)
    inside = (r < R)[:, None] & (d < D)
    high = tl.full([BR], -float("inf"), tl.float32)
    total = tl.zeros([BR], tl.float32)
    mean = tl.zeros([BR, BD], tl.float32)
    best = tl.zeros([BR], tl.int32)
    for span in range(spans):
        at = span * R + r
        here = tl.load(high_ptr + at, mask=r < R, other=0.0)
        if ANSWER:
            best = tl.where(here > high, tl.load(best_ptr + at, mask=r < R, other=0), best)
        higher = tl.maximum(high, here)
        before, added = tl.exp2(high - higher), tl.exp2(here - higher)
        total = total * before + tl.load(total_ptr + at, mask=r < R, other=1.0) * added
        if GRADIENT:
            part = tl.load(mean_ptr + at[:, None] * D + d, mask=inside, other=0.0)
            mean = mean * before[:, None] + part * added[:, None]
        high = higher
    lse = high + tl.log2(total)
    target = tl.load(target_ptr + r, mask=r < R, other=-1)
    asked = target >= 0
    x = tl.load(x_ptr + r[:, None] * D + d, mask=inside, other=0.0)
    own = tl.load(w_ptr + tl.where(asked, target, 0)[:, None] * D + d, mask=asked[:, None] & (d < D), other=0.0)
    answer_logit = tl.sum(x.to(tl.float32) * own.to(tl.float32), 1)
    loss = (high - answer_logit * LOG2E + tl.log2(total)) / LOG2E  # small numbers last: less is rounded away
    tl.store(loss_ptr + r, tl.where(asked & ~(loss < 0.0), loss, 0.0), mask=r < R)  # NaN stays; tl.maximum makes it 0
    if ANSWER:
        tl.store(answer_ptr + r, best, mask=r < R)
    if GRADIENT:
        tl.store(lse_ptr + r, lse, mask=r < R)
        dx = tl.where(asked[:, None], mean / total[:, None] - own.to(tl.float32), 0.0)
        tl.store(dx_ptr + r[:, None] * D + d, dx.to(dx_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _weight_gradient(
    x_ptr, w_ptr, target_ptr, lse_ptr, dloss_ptr, dw_ptr,
    R, V,
    D: tl.constexpr, BR: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BV tokens against all rows, BR at a time: dW_v = sum over r of dloss_r (softmax_rv - [v is r's target]) x_r."""
    v = tl.program_id(0) * BV + tl.arange(0, BV)
    d = tl.arange(0, BD)
    w = tl.load(w_ptr + v[:, None] * D + d, mask=(v < V)[:, None] & (d < D), other=0.0)
    dw = tl.zeros([BV, BD], tl.float32)
    # What belongs to the rows alone is loaded one round ahead, since the compiler does so only for products' operands.
    r = tl.arange(0, BR)
    target = tl.load(target_ptr + r, mask=r < R, other=-1)
    lse = tl.load(lse_ptr + r, mask=r < R, other=0.0)
    dloss = tl.load(dloss_ptr + r, mask=r < R, other=0.0)
    for first in range(0, R, BR):
        r = first + tl.arange(0, BR)
        x = tl.load(x_ptr + r[:, None] * D + d, mask=(r < R)[:, None] & (d < D), other=0.0)
        ahead = r + BR
        next_target = tl.load(target_ptr + ahead, mask=ahead < R, other=-1)
        next_lse = tl.load(lse_ptr + ahead, mask=ahead < R, other=0.0)
        next_dloss = tl.load(dloss_ptr + ahead, mask=ahead < R, other=0.0)
        dloss = tl.where(target >= 0, dloss, 0.0)
        z = tl.dot(w, x.T, input_precision=PRECISION) * LOG2E  # [BV, BR]
        p = tl.exp2(z - lse[None, :]) * dloss[None, :]
        p = tl.where(v[:, None] == target[None, :], p - dloss[None, :], p)
        dw += tl.dot(p.to(x.dtype), x, input_precision=PRECISION)
        target, lse, dloss = next_target, next_lse, next_dloss
    tl.store(dw_ptr + v[:, None] * D + d, dw, mask=(v < V)[:, None] & (d < D))


@torch.library.custom_op("recallbench::cross_entropy_forward", mutates_args=())
def _cross_entropy_forward(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, the logarithm of the sum to base 2, and the gradient of the loss by the row: [R], [R], [R, D]."""
    loss, lse, dx, _ = _forward(x, weight, targets, gradient=True)
    return loss, lse, dx


def _forward(x: Tensor, weight: Tensor, targets: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses [R], and with `gradient` their logarithms and gradients as above, or without it the answers [R]."""
    x, weight, targets = x.contiguous(), weight.to(x.dtype).contiguous(), targets.contiguous()
    (R, D), V = x.shape, weight.shape[0]
    loss, lse = (x.new_empty(R, dtype=torch.float32) for _ in range(2))
    dx, answer = torch.empty_like(x), torch.empty_like(targets)
    if not R:
        return loss, lse, dx, answer
    blocks = _blocks(R, D, x.dtype, kept=64, passed=128, few=256)
    programs, rounds = triton.cdiv(R, blocks["BR"]), triton.cdiv(V, blocks["BV"])
    span = triton.cdiv(rounds, min(rounds, max(1, PROGRAMS // programs))) * blocks["BV"]
    spans = -(-V // span)
    high, total = (x.new_empty(spans, R, dtype=torch.float32) for _ in range(2))
    mean = x.new_empty(spans, R, D, dtype=torch.float32) if gradient else high
    best = high if gradient else x.new_empty(spans, R, dtype=torch.int32)
    want = {"GRADIENT": gradient, "ANSWER": not gradient}
    _partial[(programs, spans)](x, weight, high, total, mean, best, R, V, span, **want, **blocks)
    parts, out = (high, total, mean, best), (loss, lse, dx, answer)
    rows = {"D": D, "BR": 16, "BD": blocks["BD"]}
    _merge[(triton.cdiv(R, 16),)](x, weight, targets, *parts, *out, R, spans, **want, **rows)
    return loss, lse, dx, answer


@_cross_entropy_forward.register_fake
def _(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.new_empty(len(x), dtype=torch.float32)
    return rows, torch.empty_like(rows), torch.empty_like(x)


@torch.library.custom_op("recallbench::cross_entropy_weight_gradient", mutates_args=())
def _cross_entropy_weight_gradient(x: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, dloss: Tensor) -> Tensor:
    """The gradient of W by the losses' own gradients `dloss` [R]: [V, D], in float32."""
    weight = weight.to(x.dtype)
    x, weight, targets, dloss = (t.contiguous() for t in (x, weight, targets, dloss))
    (R, D), V = x.shape, weight.shape[0]
    dw = torch.empty_like(weight, dtype=torch.float32)
    blocks = _blocks(V, D, x.dtype, kept=128 if D <= 64 else 64, passed=64, few=2048)
    blocks["BR"], blocks["BV"] = blocks["BV"], blocks["BR"]
    _weight_gradient[(triton.cdiv(V, blocks["BV"]),)](x, weight, targets, lse, dloss, dw, R, V, **blocks)
    return dw


@_cross_entropy_weight_gradient.register_fake
def _(x: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, dloss: Tensor) -> Tensor:
    return torch.empty_like(weight, dtype=torch.float32)


def _save(ctx, inputs, output) -> None:
    x, weight, targets = inputs
    _, lse, dx = output
    ctx.mark_non_differentiable(lse, dx)
    ctx.save_for_backward(x, weight, targets, lse, dx)


def _backward(ctx, dloss: Tensor, *unused: Tensor) -> tuple[Tensor, Tensor, None]:
    x, weight, targets, lse, dx = ctx.saved_tensors
    dw = _cross_entropy_weight_gradient(x, weight, targets, lse, dloss)
    scaled = torch.mul(dloss.unsqueeze(-1), dx, out=torch.empty_like(dx))  # rounded as it is written, in one kernel
    return scaled, dw.to(weight.dtype), None


_cross_entropy_forward.register_autograd(_backward, setup_context=_save)


def fused_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The losses [R] of `x` [R, D] and `weight` [V, D], by `targets` [R]; a negative one asks for nothing.

    Products are in the dtype of `x`, whose D is at most 256; the gradient of `weight` comes in that of `weight`.
    """
    return _cross_entropy_forward(x, weight, targets)[0]


@torch.no_grad()
def fused_answers(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The losses [R] and the tokens of the largest logits [R], the first of those that are equal."""
    loss, _, _, answer = _forward(x, weight, targets, gradient=False)
    return loss, answer


def _blocks(count: int, D: int, dtype: torch.dtype, kept: int, passed: int, few: int) -> dict[str, Any]:
    """Block sizes and the compiler's options, measured on Hopper; a kernel keeps BR rows and goes over BV tokens.

    `count`: of rows in all; up to `few` are cut finer than by `kept`, so that more programs share them. `passed`: how
    many tokens at a time where D is at most 128. In bfloat16 four warps hold 64 rows of 256 features each in registers,
    and two programs share a multiprocessor, which halves the time of eight warps.
    """
    BD = max(16, triton.next_power_of_2(D))
    BR = kept if count > few else 16
    if dtype == torch.float32:  # three tf32 products reach float32, and take twice the memory on the chip
        BR, BV, precision, num_warps, num_stages = min(BR, 64), 32, "tf32x3", 8, 2
    else:
        precision, num_warps = "ieee", 4 if BD <= 128 or BR >= 64 else 8
        BV, num_stages = (passed, 3) if BD <= 128 else (64, 2)
    return {
        "D": D, "BR": BR, "BV": BV, "BD": BD, "PRECISION": precision, "num_warps": num_warps, "num_stages": num_stages
    }  # fmt: skip
