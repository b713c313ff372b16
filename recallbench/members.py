"""Members: several models of one shape trained side by side on one data stream, parameters stacked along M.

Runs that differ only in learning rate or seed share every batch and never meet otherwise, so that each ends as if it
had trained alone. On a CPU vmap runs all of them in one call, which spares the cost of calling; on a GPU each runs in
turn on a stream of its own (see `recallbench.replay`), where that cost is gone already and every kernel is at hand.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

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


class _Method(nn.Module):
    """A method of a model in the place of `forward`, the one that `functional_call` reaches."""

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *arguments: Any) -> Any:
        return getattr(self.model, self.name)(*arguments)


def one_member(model: nn.Module, method: Literal["loss", "answers"]) -> Callable[..., Any]:
    """The method as a function of one member's parameters and then of its own arguments."""
    called = _Method(model, method)

    def one(parameters: Parameters, *arguments: Tensor) -> Any:
        return torch.func.functional_call(called, {f"model.{k}": p for k, p in parameters.items()}, arguments)

    return one


def stacks(model: nn.Module) -> bool:
    """Whether one call of vmap can run all members."""
    return all(mixer.stacks for mixer in model.modules() if isinstance(mixer, Mixer))


def every_member(model: nn.Module, method: Literal["loss", "answers"]) -> Callable[..., Any]:
    """The method of all members for the same tokens [B, N], positions and targets [B, Q]: each result [M, B, Q]."""
    one = one_member(model, method)
    together = torch.func.vmap(one, in_dims=(0, None, None, None))

    def call(parameters: Parameters, *arguments: Tensor) -> Any:
        if stacks(model) and arguments[0].device.type == "cpu":
            return together(parameters, *arguments)
        results = [one(own, *arguments) for own in each(parameters)]
        return torch.stack(results) if method == "loss" else tuple(map(torch.stack, zip(*results, strict=True)))

    return call


def each(parameters: Parameters) -> list[Parameters]:
    """The members' own slices of stacked parameters."""
    count = len(next(iter(parameters.values())))
    return [{name: p[i] for name, p in parameters.items()} for i in range(count)]


def leaves(parameters: Parameters) -> Parameters:
    """The same memory, to be differentiated by."""
    return {name: p.detach().requires_grad_() for name, p in parameters.items()}


class AdamW(NamedTuple):
    """AdamW with a learning rate a member. Source: Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2."""

    parameters: Parameters
    mean: Parameters  # m, the running mean of gradients
    square: Parameters  # v, the running mean of squared gradients
    steps: Tensor  # [M, number of parameters], how many have been taken, as torch wants it
    weight_decay: float

    @torch.no_grad()
    def step(self, i: int, gradients: Sequence[Tensor], learning_rate: Tensor) -> None:
        """One step of member `i`, in place; `gradients` in the order of `parameters`, `learning_rate` a number."""
        own = {name: [t[i] for t in getattr(self, name).values()] for name in ("parameters", "mean", "square")}
        adamw(
            own["parameters"],
            [g.contiguous() for g in gradients],
            own["mean"],
            own["square"],
            [],
            list(self.steps[i].unbind()),
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=learning_rate,
            weight_decay=self.weight_decay,
            eps=1e-8,
            maximize=False,
        )
