"""Hyena: gates and long convolutions in turn, with filters that are functions of the position.

    z_1 = v,   z_{i+1} = x_i * (h_i conv z_i),   out = W_o z_{order+1}

where v, x_1, ... are projections of the input after a short convolution. That one serves as h_1 too, as in the
reference: only h_2 and on are long, so order 2 has one long convolution between two gates.
Source: Poli et al. 2023, arXiv 2302.10866, definition 3.1 and section 3.3. Parameter names as in its reference.
"""

from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from kernels.long_conv import long_conv, long_conv_step
from models.convolution import ShortConvolution
from models.long_filter import ImplicitFilter
from models.mixer import Mixer
from models.past_inputs import PastInputs, no_inputs, remember


class HyenaState(NamedTuple):
    """The inputs of the short convolution and all past inputs of each long one."""

    short: Tensor  # [B, k - 1, (order + 1) D]
    long: tuple[PastInputs, ...]  # order - 1 times


class Hyena(Mixer):
    """The Hyena operator, whose state grows with the sequence.

    **Arguments:** `order`, the number of gates; `kernel_size` k of the short convolution; `filter_length`, the unit in
    which the filters measure positions; `filter_width` of their MLPs; `filter_bands`, how many frequencies of the
    position they see; `filter_frequency` of their sines.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        order: Annotated[int, Ge(2)] = 2,
        kernel_size: PositiveInt = 3,
        filter_length: PositiveInt = 1024,
        filter_width: PositiveInt = 64,
        filter_bands: PositiveInt = 1,
        filter_frequency: PositiveFloat = 1.0,
    ):
        super().__init__()
        self.d_model, self.order = d_model, order
        self.in_proj = nn.Linear(d_model, (order + 1) * d_model)
        self.short_filter = ShortConvolution((order + 1) * d_model, kernel_size, bias=True)
        self.filter_fn = ImplicitFilter(
            (order - 1) * d_model, filter_length, filter_width, filter_bands, filter_frequency
        )
        self.out_proj = nn.Linear(d_model, d_model)

    def init_state(self, batch_size, *, max_length=None, dtype=None, device=None) -> HyenaState:
        like = self.like_parameters(dtype, device)
        long = tuple(no_inputs(batch_size, self.d_model, None, max_length, **like) for _ in range(self.order - 1))
        return HyenaState(self.short_filter.init_state(batch_size, **like), long)

    def prefill(self, x: Tensor, state: HyenaState) -> tuple[Tensor, HyenaState]:
        u, short = self.short_filter.prefill(self.in_proj(x), state.short)
        last_gate, *gates, z = u.split(self.d_model, dim=-1)
        N, long = x.shape[1], []
        for i, gate in enumerate(reversed(gates)):
            inputs, past = remember(state.long[i], gate * z, None)  # [B, P + N, D]
            z = long_conv(inputs, self._filter(i, inputs.shape[1]))[:, inputs.shape[1] - N :]
            long.append(past)
        return self.out_proj(last_gate * z), HyenaState(short, tuple(long))

    def step(self, x: Tensor, state: HyenaState) -> tuple[Tensor, HyenaState]:
        u, short = self.short_filter.step(self.in_proj(x), state.short)
        last_gate, *gates, z = u.split(self.d_model, dim=-1)
        long = []
        for i, gate in enumerate(reversed(gates)):
            inputs, past = remember(state.long[i], (gate * z).unsqueeze(1), None)  # [B, P + 1, D]
            z = long_conv_step(inputs, self._filter(i, inputs.shape[1]))
            long.append(past)
        return self.out_proj(last_gate * z), HyenaState(short, tuple(long))

    def state_bytes(self, length: int, dtype: torch.dtype) -> int:
        long = (self.order - 1) * length * self.d_model * dtype.itemsize
        return self.short_filter.state_bytes(dtype) + long

    def _filter(self, i: int, lags: int) -> Tensor:
        """The filter of the i-th long convolution: [lags, D]."""
        return self.filter_fn(lags).unflatten(-1, (self.d_model, -1))[..., i]
