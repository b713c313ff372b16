"""Mamba-2: a state space model with one decay a head, computed as chunked linear attention.

    S_t = exp(dt_t A) S_{t-1} + B_t (dt_t x_t)^T,   y_t = C_t S_t + D x_t,   out = W_o rmsnorm(y * silu(z))

Source: Dao and Gu 2024, arXiv 2405.21060, sections 6 and 7. Parameter names as in its reference.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from kernels.decay_attention import decay_linear_attention, decay_linear_attention_step
from kernels.storage import stored
from models.convolution import ShortConvolution
from models.mixer import Mixer, accumulation_dtype
from models.settings import SettingError
from models.time_step import time_step_bias

EPS = 1e-5
"""Of the gated norm, as in the reference."""


ALIGNED = 8
"""Rows of so many numbers begin at whole 16 bytes, as the fastest matrix products want them, backward too."""


class GatedRMSNorm(nn.Module):
    """RMSNorm of y * silu(z), each of several groups of channels by itself."""

    def __init__(self, channels: int, num_groups: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.num_groups = num_groups

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        wide = accumulation_dtype(y.dtype)
        gated = (y.to(wide) * F.silu(z.to(wide))).unflatten(-1, (self.num_groups, -1))
        return F.rms_norm(gated, gated.shape[-1:], eps=EPS).flatten(-2).to(y.dtype) * self.weight


class Mamba2State(NamedTuple):
    """The inputs of the short convolution and the state space model's state."""

    conv: Tensor  # [B, k - 1, E + 2 G K]
    ssm: Tensor  # [B, H, K, V]


class Mamba2(Mixer):
    """The multi-head selective state space model with its short convolution and gate, over E = `expand` * D channels.

    **Arguments:** `d_state` K, the width of B and C; `d_conv` k, width of the short convolution; `expand`; `head_dim`
    V, which divides E, by default the largest such power of two up to 64; `num_groups` G: heads share B, C in groups.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        d_state: PositiveInt = 64,
        d_conv: PositiveInt = 4,
        expand: PositiveInt = 2,
        head_dim: PositiveInt | None = None,
        num_groups: PositiveInt = 1,
    ):
        super().__init__()
        d_inner = expand * d_model
        head_dim = head_dim or math.gcd(64, d_inner)
        num_heads = d_inner // head_dim
        if d_inner % head_dim:
            raise SettingError("head_dim", head_dim, f"it must divide the inner width expand * d_model = {d_inner}")
        if num_heads % num_groups:
            raise SettingError("num_groups", num_groups, f"it must divide expand * d_model / head_dim = {num_heads}")
        self.d_model, self.d_state, self.d_inner = d_model, d_state, d_inner
        self.num_heads, self.num_groups, self.head_dim = num_heads, num_groups, head_dim
        conv_width = d_inner + 2 * num_groups * d_state
        self.in_proj = nn.Linear(d_model, d_inner + conv_width + num_heads, bias=False)
        self.conv1d = ShortConvolution(conv_width, d_conv, bias=True)
        self.dt_bias = nn.Parameter(time_step_bias(num_heads))
        self.A_log = nn.Parameter(torch.empty(num_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(num_heads))
        self.norm = GatedRMSNorm(d_inner, num_groups)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z, xBC, dt = self._project(x)
        v, q, k, log_decay, dt = self._select(self.conv1d(xBC, silu=True), dt)
        y, _ = decay_linear_attention(q, k, dt * v, log_decay)
        return self._output(y, v, z)

    def init_state(self, batch_size, *, max_length=None, dtype=None, device=None) -> Mamba2State:
        like = self.like_parameters(dtype, device)
        ssm = torch.zeros(batch_size, self.num_heads, self.d_state, self.head_dim, **like)
        return Mamba2State(self.conv1d.init_state(batch_size, **like), ssm)

    def prefill(self, x: Tensor, state: Mamba2State) -> tuple[Tensor, Mamba2State]:
        z, xBC, dt = self._project(x)
        xBC, conv = self.conv1d.prefill(xBC, state.conv, silu=True)
        v, q, k, log_decay, dt = self._select(xBC, dt)
        y, final_state = decay_linear_attention(q, k, dt * v, log_decay, state.ssm)
        return self._output(y, v, z), Mamba2State(conv, stored(final_state(), state.ssm.dtype))

    def step(self, x: Tensor, state: Mamba2State) -> tuple[Tensor, Mamba2State]:
        z, xBC, dt = self._project(x)
        xBC, conv = self.conv1d.step(xBC, state.conv, silu=True)
        v, q, k, log_decay, dt = (t.squeeze(2) for t in self._select(xBC.unsqueeze(1), dt.unsqueeze(1)))
        y, ssm = decay_linear_attention_step(q, k, dt * v, log_decay, state.ssm)
        return self._output(y.unsqueeze(2), v.unsqueeze(2), z.unsqueeze(1)).squeeze(1), Mamba2State(conv, ssm)

    def state_bytes(self, length: int, dtype: torch.dtype) -> int:
        return self.conv1d.state_bytes(dtype) + self.d_inner * self.d_state * dtype.itemsize

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gate [..., E], the channels of the short convolution [..., E + 2 G K], dt before its softplus [..., H]."""
        weight, sizes = self.in_proj.weight, [self.d_inner, self.conv1d.in_channels, self.num_heads]
        if x.ndim == 3 and len(weight) % ALIGNED:  # of many tokens, beside which a copy of the weight is little
            weight = F.pad(weight, (0, 0, 0, -len(weight) % ALIGNED))
        z, xBC, dt, *_ = F.linear(x, weight).split([*sizes, len(weight) - sum(sizes)], dim=-1)
        return z, xBC, dt

    def _select(self, xBC: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Values x [B, H, N, V], queries C and keys B [B, G, N, K], log-decays [B, H, N], steps dt [B, H, N, 1]."""
        wide, group = accumulation_dtype(dt.dtype), self.num_groups * self.d_state
        x, B, C = xBC.split([self.d_inner, group, group], dim=-1)
        v, k, q = (
            t.unflatten(-1, (-1, n)).transpose(1, 2)
            for t, n in ((x, self.head_dim), (B, self.d_state), (C, self.d_state))
        )
        dt = F.softplus(dt.to(wide) + self.dt_bias.to(wide)).transpose(1, 2)
        return v, q, k, -self.A_log.to(wide).exp()[:, None] * dt, dt.unsqueeze(-1).to(v.dtype)

    def _output(self, y: Tensor, v: Tensor, z: Tensor) -> Tensor:
        """Add the skip, join the heads [B, H, N, V], gate, normalise, project: [B, N, D]."""
        y = (y + self.D[:, None, None] * v).transpose(1, 2).flatten(-2)
        return self.out_proj(self.norm(y, z))
