"""Members: several models of one shape as one, their parameters stacked along a leading dimension M.

Runs that differ only in learning rate or seed share every batch and every kernel launch, and never meet otherwise:
vmap keeps each member's slice to itself, so that each ends as if it had trained alone.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models import LanguageModel

warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")
# vmap runs CPU attention member by member; there is nothing for a user to do about it.

Parameters = dict[str, Tensor]


def stack(models: Sequence[LanguageModel], device: torch.device) -> tuple[LanguageModel, Parameters]:
    """A skeleton without storage of its own parameters, and the parameters of all models, each [M, ...], on `device`."""
    names = [name for name, _ in models[0].named_parameters()]
    tables = [dict(model.named_parameters()) for model in models]
    stacked = {name: torch.stack([table[name].detach() for table in tables]).to(device) for name in names}
    return models[0].to(device), stacked


def every_member(model: nn.Module) -> Callable[[Parameters, Tensor, Tensor], Tensor]:
    """The logits of all members for one batch: tokens [B, N] and positions [B, Q] -> [M, B, Q, vocabulary]."""

    def one(parameters: Parameters, tokens: Tensor, positions: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (tokens, positions))

    return torch.func.vmap(one, in_dims=(0, None, None), randomness="different")


class AdamW(NamedTuple):
    """AdamW with a learning rate a member. Source: Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2."""

    parameters: Parameters
    mean: Parameters  # m, the running mean of gradients
    square: Parameters  # v, the running mean of squared gradients
    weight_decay: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], learning_rate: Tensor, t: int) -> None:
        """Step number `t`, from 1, in place; `gradients` in the order of `parameters`, `learning_rate` [M]."""
        p, m, v = (list(table.values()) for table in (self.parameters, self.mean, self.square))
        torch._foreach_lerp_(m, gradients, 1 - self.beta1)
        torch._foreach_mul_(v, self.beta2)
        torch._foreach_addcmul_(v, gradients, gradients, 1 - self.beta2)
        scale = torch._foreach_sqrt(v)
        torch._foreach_div_(scale, (1 - self.beta2**t) ** 0.5)
        torch._foreach_add_(scale, self.eps)
        direction = torch._foreach_div(m, scale)
        torch._foreach_div_(direction, 1 - self.beta1**t)
        torch._foreach_add_(direction, p, alpha=self.weight_decay)
        rates = [learning_rate.view(-1, *[1] * (tensor.ndim - 1)) for tensor in p]
        torch._foreach_mul_(direction, rates)
        torch._foreach_sub_(p, direction)
