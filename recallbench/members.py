"""Members: several models of one shape trained side by side on one data stream, parameters stacked along M.

Runs that differ only in learning rate or seed share every batch and never meet otherwise, so that each ends as if it
had trained alone. On a CPU vmap runs all of them in one call, which spares the cost of calling; on a GPU each runs in
turn on a stream of its own (see `recallbench.replay`), where that cost is gone already and every kernel is at hand.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from models import LanguageModel, Mixer, ModelConfig, build_model
from models.huggingface import HuggingFaceConfig

warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")
# vmap runs CPU attention member by member; there is nothing for a user to do about it.

Parameters = dict[str, Tensor]


class Seeded(Protocol):
    """A run whose model starts from a seed."""

    @property
    def model(self) -> ModelConfig | HuggingFaceConfig: ...
    @property
    def seed(self) -> int: ...


def build(runs: Sequence[Seeded]) -> list[Any]:
    """The model of each run, initialised from its seed."""
    models = []
    for run in runs:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            models.append(build_model(run.model))
    return models


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
    beta2: float = 0.999

    @classmethod
    def start(cls, parameters: Parameters, weight_decay: float, beta2: float = 0.999) -> "AdamW":
        """Before the first step."""
        mean, square = ({name: torch.zeros_like(p) for name, p in parameters.items()} for _ in range(2))
        first = next(iter(parameters.values()))
        steps = torch.zeros(len(first), len(parameters), device=first.device)
        return cls(parameters, mean, square, steps, weight_decay, beta2)

    def saved(self, i: int) -> dict[str, Parameters]:
        """What a checkpoint holds of member `i`."""
        tables = {"parameters": self.parameters, "mean": self.mean, "square": self.square}
        return {key: {name: t[i].cpu().clone() for name, t in table.items()} for key, table in tables.items()}

    def load(self, saved: Sequence[dict[str, Parameters]], step: int) -> None:
        """Go on from where every member was saved, after so many steps."""
        self.steps.fill_(step)
        for key in ("parameters", "mean", "square"):
            for name, tensor in getattr(self, key).items():
                tensor.copy_(torch.stack([one[key][name] for one in saved]))

    def of(self, index: Tensor) -> "AdamW":
        """For some of the members."""
        parameters, mean, square = (
            {name: tensor[index] for name, tensor in table.items()}
            for table in (self.parameters, self.mean, self.square)
        )
        return self._replace(parameters=parameters, mean=mean, square=square, steps=self.steps[index])

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
            beta2=self.beta2,
            lr=learning_rate,
            weight_decay=self.weight_decay,
            eps=1e-8,
            maximize=False,
        )
