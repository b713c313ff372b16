"""A Triton kernel for many unit triangular systems, `kernels/unit_triangular.py`: row by row, in registers.

    x_i = r_i - sum over j < i of L_ij x_j,   transposed, from the last row up: x_i = r_i - sum over j > i of L_ji x_j

A program, one warp, solves a system for some of its columns: C^2 operations a column, each of its numbers read and
written once, 8 C bytes in float32, and L again for every `COLUMNS` of them. Gradients are solved for by the same
kernel:

    dR = (I + L)^-T dX,   dL = -(dR X^T) below the diagonal
"""

# Triton has no types for launches, nor for loops that it unrolls.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 32
"""Of a program: with C = 32 as many numbers a thread."""


@triton.jit
def _solve(L_ptr, R_ptr, X_ptr, C, P, TRANSPOSED: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr):
    system = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, BC), tl.program_id(1) * BP + tl.arange(0, BP)
    inside = (row < C)[:, None] & (column < P)[None, :]
    at = system * C * P + row[:, None] * P + column[None, :]
    L_ptr += system * C * C
    x = tl.load(R_ptr + at, mask=inside, other=0.0).to(tl.float32)
    for step in tl.static_range(1, BC):
        i = C - 1 - step if TRANSPOSED else step
        if TRANSPOSED:
            known = (row > i) & (row < C) & (i >= 0)
            weight = tl.load(L_ptr + row * C + i, mask=known, other=0.0)
        else:
            known = (row < i) & (i < C)
            weight = tl.load(L_ptr + i * C + row, mask=known, other=0.0)
        taken = tl.sum(weight.to(tl.float32)[:, None] * x, 0)
        x = tl.where((row == i)[:, None], x - taken[None, :], x)
    tl.store(X_ptr + at, x.to(X_ptr.dtype.element_ty), mask=inside)


@torch.library.custom_op("recallbench::unit_triangular_solve", mutates_args=())
def _solved(L: Tensor, R: Tensor, transposed: bool) -> Tensor:
    L, R = L.contiguous(), R.contiguous()
    C, P = R.shape[-2:]
    X = torch.empty_like(R)
    with torch.cuda.device_of(R):
        _solve[(R.numel() // (C * P), triton.cdiv(P, COLUMNS))](
            L, R, X, C, P, transposed, triton.next_power_of_2(C), COLUMNS, num_warps=1
        )
    return X


@_solved.register_fake
def _(L: Tensor, R: Tensor, transposed: bool) -> Tensor:
    return torch.empty_like(R, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
    L, _, ctx.transposed = inputs
    ctx.save_for_backward(L, output)


def _backward(ctx: Any, dX: Tensor) -> tuple[Tensor, Tensor, None]:
    L, X = ctx.saved_tensors
    dR = _solved(L, dX, not ctx.transposed)
    dL = X @ dR.mT if ctx.transposed else dR @ X.mT
    return -dL.tril(-1), dR, None


_solved.register_autograd(_backward, setup_context=_save)


@_solved.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], L: Tensor, R: Tensor, transposed: bool) -> tuple[Tensor, int]:
    """Members are so many more systems."""
    L, R = (
        t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip((L, R), in_dims, strict=False)
    )
    return _solved(L, R, transposed), 0


def fused_unit_triangular_solve(L: Tensor, R: Tensor) -> Tensor:
    """`kernels.unit_triangular.unit_triangular_solve` on a GPU, sums in float32, for any strides.

    **Raises** `ValueError` where shapes do not fit together.
    """
    if L.shape[:-1] != R.shape[:-1] or L.shape[-1] != L.shape[-2]:
        raise ValueError(f"L is {tuple(L.shape)} and R {tuple(R.shape)}; [..., C, C] and [..., C, P] would be right")
    return _solved(L, R, False)
