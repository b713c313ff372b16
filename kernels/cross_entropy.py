"""The cross-entropy of a linear head, whose logits x W^T [R, vocabulary] are the largest tensor of a training step.

    loss_r = log sum_v exp(z_rv) - z_rt,   z = x W^T,   t the target of row r

On a GPU the logits never leave the chip (`kernels/cross_entropy_triton.py`); here they are in memory.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import Backend, takes_triton
from kernels.cross_entropy_triton import fused_answers, fused_cross_entropy

IGNORED = -100
"""The target of a row that asks for nothing; its loss is 0."""


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, backend: Backend | None = None) -> Tensor:
    """The loss of each row, in nats: `x` [..., D], `weight` [vocabulary, D], `targets` [...] -> float32 [...].

    Under autocast the products take its dtype; sums are in float32 always. Float64 stays float64.
    """
    if _takes_triton(x, weight, backend):
        return fused_cross_entropy(*_operands(x, weight), targets.flatten()).view(targets.shape)
    return cross_entropy(F.linear(x, weight), targets)


def linear_answers(x: Tensor, weight: Tensor, targets: Tensor, backend: Backend | None = None) -> tuple[Tensor, Tensor]:
    """The loss of each row as above, without gradients, and the token of the largest logit: [...], int64 [...]."""
    if _takes_triton(x, weight, backend):
        loss, answer = fused_answers(*_operands(x, weight), targets.flatten())
        return loss.view(targets.shape), answer.view(targets.shape)
    logits = F.linear(x, weight)
    return cross_entropy(logits, targets), logits.argmax(-1)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of each row, 0 where nothing is asked: [..., vocabulary], [...] -> at least float32 [...]."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    return F.cross_entropy(wide, targets.flatten(), ignore_index=IGNORED, reduction="none").view(targets.shape)


def _takes_triton(x: Tensor, weight: Tensor, backend: Backend | None) -> bool:
    kernel = "cross_entropy_float32" if _product_dtype(x) == torch.float32 else "cross_entropy"
    return takes_triton(kernel, backend, (x, weight), D=x.shape[-1])


def _operands(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [R, D] in the dtype of the products, and the weights, whose gradient keeps the precision of theirs."""
    return x.flatten(0, -2).to(_product_dtype(x)), weight


def _product_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
