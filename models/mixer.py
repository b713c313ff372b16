"""The contract that every mixer keeps: one function of the sequence, in parallel form and in recurrent form."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

State = Any
"""A pytree of tensors: all that a mixer keeps between two decode steps. Leaves lead with the batch dimension B."""


class Mixer(nn.Module, ABC):
    """Moves information across positions, causally: the output at position t depends on inputs 0 .. t only.

    `forward` (parallel form) and any split of a sequence into `prefill` and `step` (recurrent form) give the same
    outputs. A state that was passed in is spent: use the one returned, which has the same dtypes.
    A subclass constructs from `d_model` alone; its keyword settings, as annotated, are its configuration schema.
    """

    d_model: int
    needs_gpu: ClassVar[bool] = False
    """Whether it runs on a GPU alone."""
    stacks: ClassVar[bool] = True
    """Whether `torch.func.vmap` can run it with stacked parameters; members of one that cannot take turns."""

    @abstractmethod
    def init_state(
        self,
        batch_size: int,
        *,
        max_length: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> State:
        """The state before the first token.

        **Arguments:** `max_length`: allocate what grows with the sequence once, for this many tokens, and update it
        in place; without it the state grows as tokens arrive. `dtype`: of the floating-point leaves, by default the
        parameters'. `device`: by default the parameters'.
        """

    @abstractmethod
    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Read `x` [B, N, D] in parallel form after all that `state` holds: outputs [B, N, D] and the new state."""

    @abstractmethod
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token `x` [B, D] in recurrent form: output [B, D] and the new state."""

    @abstractmethod
    def state_bytes(self, length: int, dtype: torch.dtype) -> int:
        """Bytes of state a sequence after `length` tokens, from shapes alone."""

    def forward(self, x: Tensor) -> Tensor:
        """The parallel form from an empty past: [B, N, D] -> [B, N, D]."""
        return self.prefill(x, self.init_state(x.shape[0], dtype=x.dtype, device=x.device))[0]

    def like_parameters(self, dtype: torch.dtype | None, device: torch.device | str | None) -> dict[str, Any]:
        """`dtype` and `device` for a state's leaves, the parameters' own where not given."""
        parameter = next(self.parameters())
        return {"dtype": dtype or parameter.dtype, "device": device or parameter.device}


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Sums over a sequence run at least in float32, whatever the inputs and the stored state are."""
    return torch.float64 if dtype == torch.float64 else torch.float32
