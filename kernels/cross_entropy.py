"""The cross-entropy of a linear head, whose logits x W^T [R, vocabulary] are the largest tensor of a training step.

    loss_r = log sum_v exp(z_rv) - z_rt,   z = x W^T,   t the target of row r

On a GPU the logits of a narrow head never leave the chip (`kernels/cross_entropy_triton.py`), and those of a wide one
are in memory by the chunk (`kernels/cross_entropy_chunks_triton.py`); here all of them are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import KERNELS, Backend, takes_triton
from kernels.cross_entropy_chunks_triton import chunked_answers, chunked_cross_entropy
from kernels.cross_entropy_triton import fused_answers, fused_cross_entropy

IGNORED = -100
"""The target of a row that asks for nothing; its loss is 0."""

LOSSES = {"cross_entropy": fused_cross_entropy, "cross_entropy_chunks": chunked_cross_entropy}
ANSWERS = {"cross_entropy": fused_answers, "cross_entropy_chunks": chunked_answers}


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, backend: Backend | None = None) -> Tensor:
    """The loss of each row, in nats: `x` [..., D], `weight` [vocabulary, D], `targets` [...] -> float32 [...].

    Under autocast the products take its dtype; sums are in float32 always. Float64 stays float64.
    """
    if kernel := _triton_kernel(x, weight, backend):
        return LOSSES[kernel](*_operands(x, weight), targets.flatten()).view(targets.shape)
    return cross_entropy(F.linear(x, weight), targets)


def linear_answers(x: Tensor, weight: Tensor, targets: Tensor, backend: Backend | None = None) -> tuple[Tensor, Tensor]:
    """The loss of each row as above, without gradients, and the token of the largest logit: [...], int64 [...]."""
    if kernel := _triton_kernel(x, weight, backend):
        loss, answer = ANSWERS[kernel](*_operands(x, weight), targets.flatten())
        return loss.view(targets.shape), answer.view(targets.shape)
    logits = F.linear(x, weight)
    return cross_entropy(logits, targets), logits.argmax(-1)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of each row, 0 where nothing is asked: [..., vocabulary], [...] -> at least float32 [...]."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    return F.cross_entropy(wide, targets.flatten(), ignore_index=IGNORED, reduction="none").view(targets.shape)


def _triton_kernel(x: Tensor, weight: Tensor, backend: Backend | None) -> str | None:
    """The one whose width it is, or None for the reference."""
    _, widest = KERNELS["cross_entropy"].sizes["D"]
    kernel = "cross_entropy" if x.shape[-1] <= widest else "cross_entropy_chunks"
    return kernel if takes_triton(kernel, backend, (x, weight)) else None


def _operands(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [R, D] in the dtype of the products, and the weights, whose gradient keeps the precision of theirs."""
    return x.flatten(0, -2).to(_product_dtype(x)), weight


def _product_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
