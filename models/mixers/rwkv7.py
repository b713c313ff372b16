"""RWKV-7's time mixing: a memory whose channels each decay at their own rate, and which replaces what it holds.

    S_t = diag(w_t) S_{t-1} - (a_t * p_t) (p_t S_{t-1}) + k_t v_t^T,   y_t = r_t S_t
    out = W_o (g_t * (groupnorm(y_t) + (r_t . (r_k * k_t)) v_t))

All vectors are projections of the token after a step towards the token before it, w_t, a_t and g_t through low ranks.
p_t (the paper's kappa) is the unit vector along k_k * W_k x, and k_t = W_k x * (1 + (a_t - 1) * k_a).
Source: Peng et al. 2025, arXiv 2503.14456, section 4, with the transpose of its state. Parameter names as in
flash-linear-attention's `RWKV7Attention`.

The paper mixes the values of its first layer into those of every later one. A mixer sees its own layer alone, so each
is here what the paper's first layer is: without that residual, and with that layer's initial values, except for the
four square projections, which begin as in any other mixer.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from kernels.diagonal_delta_rule import diagonal_delta_rule, diagonal_delta_rule_step
from kernels.storage import stored
from models.mixer import Mixer, accumulation_dtype
from models.settings import SettingError

EPS = 1e-5
"""Of the group norm, times the width of a group."""

LEAST_LOG_DECAY = -math.exp(-0.5)
"""No channel keeps less than exp(-exp(-1/2)) = 0.55 of itself in a step."""


class _LowRankLinear(nn.Linear):
    keeps_initialisation = True


class LowRank(nn.Module):
    """W_2 f(W_1 x) + b. At the start W_1 = 0, so that nothing depends on the token yet, and W_2 is orthogonal."""

    def __init__(self, d_model: int, rank: int, f: nn.Module, bias: Tensor | None):
        super().__init__()
        down = _LowRankLinear(d_model, rank, bias=False)
        up = _LowRankLinear(rank, d_model, bias=bias is not None)
        nn.init.zeros_(down.weight)
        nn.init.orthogonal_(up.weight, gain=0.1 * max(rank / d_model, 1) ** 0.5)
        if bias is not None:
            up.bias.data.copy_(bias)
        self.lora = nn.Sequential(down, f, up)

    def forward(self, x: Tensor) -> Tensor:
        return self.lora(x)


class RWKV7State(NamedTuple):
    """The token before, and the memory of every head."""

    previous: Tensor  # [B, D]
    memory: Tensor  # [B, H, K, K]


class RWKV7(Mixer):
    """The time-mixing block of RWKV-7, whose keys and values are as wide as the model.

    **Arguments:** `head_dim` K, which divides `d_model`, by default the largest such power of two up to 64;
    `decay_low_rank_dim`, `a_low_rank_dim`, `gate_low_rank_dim`: ranks of the projections to w, a and g, by default
    those of the reference, which grow with the root of `d_model` from 32.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        head_dim: PositiveInt | None = None,
        decay_low_rank_dim: PositiveInt | None = None,
        a_low_rank_dim: PositiveInt | None = None,
        gate_low_rank_dim: PositiveInt | None = None,
    ):
        super().__init__()
        head_dim = head_dim or math.gcd(64, d_model)
        if d_model % head_dim:
            raise SettingError("head_dim", head_dim, f"it must divide the model width d_model = {d_model}")
        self.d_model, self.head_dim, self.num_heads = d_model, head_dim, d_model // head_dim
        rank = _rank(2.5 * d_model**0.5 * head_dim / 64)

        # The initial values of the reference's first layer, functions of the channel.
        # linspace is told where: once transformers has loaded a model, torch's no longer heeds `with device`.
        here = torch.get_default_device()
        ramp = torch.linspace(-0.5, 0.5, d_model, device=here)
        wave = torch.linspace(-1, 1, head_dim, device=here).repeat(self.num_heads)
        wave = wave * wave.abs()
        share = torch.arange(d_model).view(1, 1, -1) / d_model
        self.x_r = nn.Parameter(1 - share**0.2)
        self.x_w = nn.Parameter(1 - share**0.9)
        self.x_k = nn.Parameter(1 - share**0.7)
        self.x_v = nn.Parameter(1 - share**0.7)
        self.x_a = nn.Parameter(1 - share**0.9)
        self.x_g = nn.Parameter(1 - share**0.2)
        self.k_k = nn.Parameter(0.71 - 0.1 * ramp)
        self.k_a = nn.Parameter(torch.full((d_model,), 1.02))
        self.r_k = nn.Parameter(torch.full((self.num_heads, head_dim), -0.04))
        self.r_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)
        self.w_lora = LowRank(d_model, decay_low_rank_dim or rank, nn.Tanh(), 6 * ramp - 2.5 + 2.5 * wave)
        self.a_lora = LowRank(d_model, a_low_rank_dim or rank, nn.Identity(), 0.4 * ramp - 0.19 + 0.3 * wave)
        self.g_lora = LowRank(d_model, gate_low_rank_dim or _rank(5 * d_model**0.5), nn.Sigmoid(), None)
        self.g_norm = nn.GroupNorm(self.num_heads, d_model, eps=head_dim * EPS)

    def init_state(self, batch_size, *, max_length=None, dtype=None, device=None) -> RWKV7State:
        like = self.like_parameters(dtype, device)
        memory = torch.zeros(batch_size, self.num_heads, self.head_dim, self.head_dim, **like)
        return RWKV7State(torch.zeros(batch_size, self.d_model, **like), memory)

    def prefill(self, x: Tensor, state: RWKV7State) -> tuple[Tensor, RWKV7State]:
        tokens = torch.cat([state.previous.to(x.dtype).unsqueeze(1), x], dim=1)  # [B, 1 + N, D]
        r, log_w, k, v, p, a, g = self._select(x, tokens[:, :-1])
        y, memory = diagonal_delta_rule(r, log_w, k, v, -p, a * p, state.memory)
        previous = stored(tokens[:, -1], state.previous.dtype, copy=True)
        return self._output(y, r, k, v, g), RWKV7State(previous, stored(memory, state.memory.dtype))

    def step(self, x: Tensor, state: RWKV7State) -> tuple[Tensor, RWKV7State]:
        previous = state.previous.to(x.dtype).unsqueeze(1)
        r, log_w, k, v, p, a, g = self._select(x.unsqueeze(1), previous)
        inputs = (t.squeeze(2) for t in (r, log_w, k, v, -p, a * p))
        y, memory = diagonal_delta_rule_step(*inputs, state=state.memory)
        y = self._output(y.unsqueeze(2), r, k, v, g).squeeze(1)
        return y, RWKV7State(stored(x, state.previous.dtype, copy=True), memory)

    def state_bytes(self, length: int, dtype: torch.dtype) -> int:
        return (self.d_model + self.d_model * self.head_dim) * dtype.itemsize

    def _select(self, x: Tensor, previous: Tensor) -> tuple[Tensor, ...]:
        """r, log w, k, v, p and a, each [B, H, N, K], and the gate g [B, N, D]."""
        wide, towards = accumulation_dtype(x.dtype), previous - x
        r = self.r_proj(x + towards * self.x_r)
        w = self.w_lora(x + towards * self.x_w)
        k = self.k_proj(x + towards * self.x_k)
        v = self.v_proj(x + towards * self.x_v)
        a = self.a_lora(x + towards * self.x_a).to(wide).sigmoid()
        g = self.g_lora(x + towards * self.x_g)

        log_w = LEAST_LOG_DECAY * w.to(wide).sigmoid()
        p = k * self.k_k
        k = k * (1 + (a - 1) * self.k_a)
        r, log_w, k, v, p, a = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (r, log_w, k, v, p, a))
        return r, log_w, k, v, F.normalize(p.to(wide), dim=-1), a, g

    def _output(self, y: Tensor, r: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
        """Normalise each head [B, H, N, K], add the current token's own value, join the heads, gate, project."""
        bonus = ((r * k * self.r_k.unsqueeze(1)).sum(-1, keepdim=True) * v).transpose(1, 2).flatten(-2)
        normed = self.g_norm(y.transpose(1, 2).flatten(-2).flatten(0, 1)).unflatten(0, g.shape[:2])
        return self.o_proj(((normed + bonus) * g).to(g.dtype))


def _rank(width: float) -> int:
    """The nearest multiple of 32, at least 32."""
    return max(32, 32 * round(width / 32))
