"""Mamba: a state space model whose step size, input and output matrices are functions of the token.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,   y_t = C_t . h_t + D u_t,   out = W_o (y * silu(z))

Source: Gu and Dao 2023, arXiv 2312.00752, equations 1a to 2a and Figure 3. Parameter names as in its reference.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from kernels.selective_scan import selective_scan, selective_scan_step
from kernels.storage import stored
from models.convolution import ShortConvolution
from models.mixer import Mixer, accumulation_dtype
from models.time_step import time_step_bias


class TimeStepProjection(nn.Linear):
    """A projection to step sizes, whose initialisation fixes how fast the model forgets (section 3.6)."""

    keeps_initialisation = True

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.weight, -(self.in_features**-0.5), self.in_features**-0.5)
        with torch.no_grad():
            self.bias.copy_(time_step_bias(self.out_features))


class MambaState(NamedTuple):
    """The inputs of the short convolution and the state space model's state."""

    conv: Tensor  # [B, k - 1, E]
    ssm: Tensor  # [B, E, S]


class Mamba(Mixer):
    """The selective state space model with its short convolution and gate, over E = `expand` * D channels.

    **Arguments:** `d_state` S, state elements a channel; `d_conv` k, width of the short convolution; `expand`;
    `dt_rank`, rank of the step size's projection, D / 16 rounded up by default.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        d_state: PositiveInt = 16,
        d_conv: PositiveInt = 4,
        expand: PositiveInt = 2,
        dt_rank: PositiveInt | None = None,
    ):
        super().__init__()
        self.d_model, self.d_state, self.d_inner = d_model, d_state, expand * d_model
        self.dt_rank = dt_rank or math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = ShortConvolution(self.d_inner, d_conv, bias=True)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = TimeStepProjection(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def init_state(self, batch_size, *, max_length=None, dtype=None, device=None) -> MambaState:
        like = self.like_parameters(dtype, device)
        ssm = torch.zeros(batch_size, self.d_inner, self.d_state, **like)
        return MambaState(self.conv1d.init_state(batch_size, **like), ssm)

    def prefill(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u, conv = self.conv1d.prefill(u, state.conv, silu=True)
        y, ssm = selective_scan(u, *self._select(u), state.ssm)
        return self._output(y, u, z), MambaState(conv, stored(ssm, state.ssm.dtype))

    def step(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u, conv = self.conv1d.step(u, state.conv, silu=True)
        y, ssm = selective_scan_step(u, *self._select(u), state.ssm)
        return self._output(y, u, z), MambaState(conv, ssm)

    def state_bytes(self, length: int, dtype: torch.dtype) -> int:
        return self.conv1d.state_bytes(dtype) + self.d_inner * self.d_state * dtype.itemsize

    def _select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the token decides: dt [..., E], B and C [..., S]; and A [E, S], which it does not."""
        wide = accumulation_dtype(u.dtype)
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return F.softplus(self.dt_proj(dt).to(wide)), -self.A_log.to(wide).exp(), B, C

    def _output(self, y: Tensor, u: Tensor, z: Tensor) -> Tensor:
        return self.out_proj((y + self.D * u) * F.silu(z))
