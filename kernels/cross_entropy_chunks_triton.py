"""The cross-entropy of a wide linear head: chunks of its logits in memory, between matrix products of the library's.

A row's gradient of more than some 256 features does not fit into a program's registers beside a product of them, as
`kernels/cross_entropy_triton.py` keeps it. Here the products are the library's, and a Triton kernel turns the logits
between two of them into their gradient in place. Chunks are such that each yields a whole part of its result:

    forward, chunks of rows:     z = x_c W^T,  loss_r = log sum_v exp(z_rv) - z_rt,  dz = softmax(z) - onehot(t),
                                 dx_c = dz W, by a loss's own gradient of 1
    backward, chunks of tokens:  z = x W_c^T,  dz_rv = dloss_r (exp(z_rv) / sum_r - [v is t]),  dW_c = dz^T x

With R rows, D features and V tokens: 4 R V D operations forward and 4 R V D backward, of which 2 R V D are the logits'.
Logits pass through memory five times forward, as the softmax reads them twice, the second time mostly from the cache,
and four times backward: 2 R V bytes each in bfloat16. No more than `CHUNK_BYTES` of them are there at once.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

CHUNK_BYTES = 2**29
"""The most that a chunk of logits takes, but for one row or `ALIGNED` tokens."""

ALIGNED = 64
"""Tokens are made up to a multiple of so many, with weights of 0, so that rows of logits start at whole cache lines:
matrix products and whole loads of 16 bytes need it."""

WHOLE_ROWS: dict[str, Any] = {"BV": 8192, "num_warps": 16}
"""Two programs fit on a processor of an H100, whose cache of 50 MB holds their rows: 26 MB, with 50,000 tokens."""

PARTS_OF_ROWS: dict[str, Any] = {"BV": 2048, "num_warps": 4}

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _softmax(
    z_ptr, target_ptr, loss_ptr, lse_ptr, answer_ptr,
    V, width,
    BV: tl.constexpr, GRADIENT: tl.constexpr, ANSWER: tl.constexpr,
):  # fmt: skip
    """The loss of a row of logits, V of its `width`, which with GRADIENT become its gradient; logarithms to base 2."""
    r = tl.program_id(0)
    row = z_ptr + r.to(tl.int64) * width
    target = tl.load(target_ptr + r).to(tl.int32)
    asked = target >= 0
    own = tl.load(row + tl.where(asked, target, 0)).to(tl.float32)  # here, before any thread writes to the row
    high = tl.full([], -float("inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    best = tl.full([], 0, tl.int32)
    for first in range(0, V, BV):
        v = first + tl.arange(0, BV)
        z = tl.load(row + v, mask=v < width, other=0.0).to(tl.float32)  # a mask by V would part the threads' 16 bytes
        z = tl.where(v < V, z * LOG2E, -float("inf"))
        here = tl.max(z, 0)
        if ANSWER:
            best = tl.where(here > high, first + tl.argmax(z, 0), best)
        higher = tl.maximum(high, here)
        total = total * tl.exp2(high - higher) + tl.sum(tl.exp2(z - higher), 0)
        high = higher
    lse = high + tl.log2(total)
    loss = (high - own * LOG2E + tl.log2(total)) / LOG2E  # small numbers last: less is rounded away
    tl.store(loss_ptr + r, tl.where(asked & ~(loss < 0.0), loss, 0.0))  # NaN stays; tl.maximum makes it 0
    if ANSWER:
        tl.store(answer_ptr + r, best)
    if GRADIENT:
        tl.store(lse_ptr + r, lse)
        for first in range(0, width, BV):
            v = first + tl.arange(0, BV)
            p = tl.exp2(tl.load(row + v, mask=v < width, other=0.0).to(tl.float32) * LOG2E - lse)
            dz = tl.where(asked & (v < V), tl.where(v == target, p - 1, p), 0.0)
            tl.store(row + v, dz.to(z_ptr.dtype.element_ty), mask=v < width)


@triton.jit
def _logit_gradient(
    z_ptr, target_ptr, lse_ptr, dloss_ptr,
    start, width,
    BV: tl.constexpr,
):  # fmt: skip
    """The logits of one row for `width` tokens from `start` on become their gradient by the row's `dloss`."""
    r = tl.program_id(0)
    v = tl.program_id(1) * BV + tl.arange(0, BV)
    at = z_ptr + r.to(tl.int64) * width + v
    target, lse, dloss = tl.load(target_ptr + r).to(tl.int32), tl.load(lse_ptr + r), tl.load(dloss_ptr + r)
    p = tl.exp2(tl.load(at, mask=v < width, other=0.0).to(tl.float32) * LOG2E - lse)
    dz = tl.where(target >= 0, tl.where(start + v == target, p - 1, p) * dloss, 0.0)
    tl.store(at, dz.to(z_ptr.dtype.element_ty), mask=v < width)


@torch.library.custom_op("recallbench::cross_entropy_chunks_forward", mutates_args=())
def _chunks_forward(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, the logarithm of the sum to base 2, and the gradient of the loss by the row: [R], [R], [R, D]."""
    loss, lse, dx, _ = _forward(x, weight, targets, gradient=True)
    return loss, lse, dx


def _forward(x: Tensor, weight: Tensor, targets: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses [R], and with `gradient` their logarithms and gradients as above, or without it the answers [R]."""
    R, V = len(x), len(weight)
    weight, targets = _aligned(weight, x.dtype), targets.contiguous()
    loss, lse = (x.new_empty(R, dtype=torch.float32) for _ in range(2))
    dx, answer = x.new_empty(x.shape), torch.empty_like(targets)
    rows = _chunk(len(weight) * x.itemsize)
    logits = x.new_empty(min(rows, R), len(weight))
    for start in range(0, R, rows):
        c = slice(start, min(start + rows, R))
        z = torch.mm(x[c], weight.T, out=logits[: c.stop - start])
        out = (loss[c], lse[c], answer[c])
        want = {"GRADIENT": gradient, "ANSWER": not gradient}
        _softmax[(len(z),)](z, targets[c], *out, V, z.shape[1], **want, **WHOLE_ROWS)
        if gradient:
            torch.mm(z, weight, out=dx[c])
    return loss, lse, dx, answer


@_chunks_forward.register_fake
def _(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.new_empty(len(x), dtype=torch.float32)
    return rows, torch.empty_like(rows), x.new_empty(x.shape)


@torch.library.custom_op("recallbench::cross_entropy_chunks_weight_gradient", mutates_args=())
def _chunks_weight_gradient(x: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, dloss: Tensor) -> Tensor:
    """The gradient of W by the losses' own gradients `dloss` [R]: [V, D], in float32."""
    R, V = len(x), len(weight)
    weight, targets, dloss = _aligned(weight, x.dtype), targets.contiguous(), dloss.contiguous()
    dw = x.new_empty(weight.shape, dtype=torch.float32)
    tokens = max(ALIGNED, _chunk(max(R, 1) * x.itemsize))
    logits = x.new_empty(R * min(tokens, len(weight)))
    for start in range(0, len(weight), tokens):
        c = slice(start, min(start + tokens, len(weight)))
        width = c.stop - start
        z = torch.mm(x, weight[c].T, out=logits[: R * width].view(R, width))
        programs = (R, triton.cdiv(width, PARTS_OF_ROWS["BV"]))
        _logit_gradient[programs](z, targets, lse, dloss, start, width, **PARTS_OF_ROWS)
        _wide_product(z.T, x, out=dw[c])
    return dw[:V]


@_chunks_weight_gradient.register_fake
def _(x: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, dloss: Tensor) -> Tensor:
    return x.new_empty(weight.shape, dtype=torch.float32)


def _aligned(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight` [V, D] in the products' dtype, with rows of 0 up to a multiple of `ALIGNED`."""
    return F.pad(weight.to(dtype), (0, 0, 0, -len(weight) % ALIGNED))


def _chunk(size: int) -> int:
    """How many of `size` bytes each a chunk has: a power of two, which fills the processors with whole tiles."""
    return 1 << (max(1, CHUNK_BYTES // size).bit_length() - 1)


def _wide_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """a b in float32, of operands as narrow as they are where the device can."""
    if a.is_cuda and a.dtype != torch.float32:
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        torch.mm(a.float(), b.float(), out=out)


def _save(ctx, inputs, output) -> None:
    x, weight, targets = inputs
    _, lse, dx = output
    ctx.mark_non_differentiable(lse, dx)
    ctx.save_for_backward(x, weight, targets, lse, dx)


def _backward(ctx, dloss: Tensor, *unused: Tensor) -> tuple[Tensor, Tensor, None]:
    x, weight, targets, lse, dx = ctx.saved_tensors
    dw = _chunks_weight_gradient(x, weight, targets, lse, dloss)
    return (dloss.unsqueeze(-1) * dx).to(x.dtype), dw.to(weight.dtype), None


_chunks_forward.register_autograd(_backward, setup_context=_save)


def chunked_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The losses [R] of `x` [R, D] and `weight` [V, D], by `targets` [R]; a negative one asks for nothing.

    Products are in the dtype of `x`; the gradient of `weight` comes in that of `weight`.
    """
    return _chunks_forward(x, weight, targets)[0]


@torch.no_grad()
def chunked_answers(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The losses [R] and the tokens of the largest logits [R], the first of those that are equal."""
    loss, _, _, answer = _forward(x, weight, targets, gradient=False)
    return loss, answer
