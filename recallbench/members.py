"""Members: several models of one shape as one, their parameters stacked along a leading dimension M.

Runs that differ only in learning rate or seed share every batch and every kernel launch, and never meet otherwise:
vmap keeps each member's slice to itself, so that each ends as if it had trained alone.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models import LanguageModel, Mixer

warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")
# vmap runs CPU attention member by member; there is nothing for a user to do about it.

Parameters = dict[str, Tensor]


def stack(models: Sequence[LanguageModel], device: torch.device) -> tuple[LanguageModel, Parameters]:
    """The first model, as a skeleton to call, and the parameters of all models, each [M, ...], on `device`."""
    names = [name for name, _ in models[0].named_parameters()]
    tables = [dict(model.named_parameters()) for model in models]
    stacked = {name: torch.stack([table[name].detach() for table in tables]).to(device) for name in names}
    return models[0].to(device), stacked


def every_member(model: nn.Module) -> Callable[[Parameters, Tensor, Tensor], Tensor]:
    """The logits of all members for one batch: tokens [B, N] and positions [B, Q] -> [M, B, Q, vocabulary]."""

    def one(parameters: Parameters, tokens: Tensor, positions: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (tokens, positions))

    if all(mixer.stacks for mixer in model.modules() if isinstance(mixer, Mixer)):
        return torch.func.vmap(one, in_dims=(0, None, None))

    def in_turns(parameters: Parameters, tokens: Tensor, positions: Tensor) -> Tensor:
        count = len(next(iter(parameters.values())))
        members = ({name: p[i] for name, p in parameters.items()} for i in range(count))
        return torch.stack([one(member, tokens, positions) for member in members])

    return in_turns


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
        bias1, bias2 = 1 - self.beta1**t, 1 - self.beta2**t
        for (name, p), g in zip(self.parameters.items(), gradients, strict=True):
            m, v = self.mean[name], self.square[name]
            m.lerp_(g, 1 - self.beta1)
            v.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
            direction = (m / bias1) / ((v / bias2).sqrt_().add_(self.eps)) + self.weight_decay * p
            p.sub_(learning_rate.view(-1, *[1] * (p.ndim - 1)) * direction)
