"""RetNet's multi-scale retention: linear attention with rotary positions that forgets at its own fixed rate a head.

    S_t = g_h S_{t-1} + k_t v_t^T,   y_t = q_t S_t / sqrt(K),   g_h = 1 - 2^(-5 - h),   h = 0 .. H - 1
    out = W_o (rmsnorm(y) * silu(W_g x))

Source: Sun et al. 2023, arXiv 2307.08621, equations 5 to 8. As in flash-linear-attention's `MultiScaleRetention`, whose
parameter names these are, rotations come without the scaling of xPos and the group norm is an RMSNorm of each head.
"""

import math
from typing import NamedTuple

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from kernels.decay_attention import decay_linear_attention, decay_linear_attention_step
from kernels.storage import stored
from models.gated_norm import GatedRMSNorm
from models.head_width import head_width
from models.mixer import Mixer, accumulation_dtype
from models.rope import rope


class RetNetState(NamedTuple):
    """The memory of every head, and the number of tokens so far, from which the rotations go on."""

    memory: Tensor  # [B, H, K, V]
    position: Tensor  # [B]


class RetNet(Mixer):
    """Multi-scale retention with an output gate.

    **Arguments:** `num_heads` H, by default 8 or as many of them as leave heads of an even width; `expand_k`,
    `expand_v`: the width of the keys of all heads, and of their values, in multiples of `d_model`.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt | None = None,
        expand_k: PositiveFloat = 1.0,
        expand_v: PositiveFloat = 2.0,
    ):
        super().__init__()
        num_heads = num_heads or math.gcd(8, int(expand_k * d_model / 2), int(expand_v * d_model)) or 1
        self.d_model, self.num_heads = d_model, num_heads
        self.key_dim = head_width("expand_k", expand_k, d_model, num_heads, multiple_of=2)
        self.value_dim = head_width("expand_v", expand_v, d_model, num_heads)
        self.q_proj = nn.Linear(d_model, num_heads * self.key_dim, bias=False)
        self.k_proj = nn.Linear(d_model, num_heads * self.key_dim, bias=False)
        self.v_proj = nn.Linear(d_model, num_heads * self.value_dim, bias=False)
        self.g_proj = nn.Linear(d_model, num_heads * self.value_dim, bias=False)
        self.g_norm_swish_gate = GatedRMSNorm(self.value_dim)
        self.o_proj = nn.Linear(num_heads * self.value_dim, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, log_decay = self._project(x, torch.zeros(1, dtype=torch.int64, device=x.device))
        y, _ = decay_linear_attention(q, k, v, log_decay)
        return self._output(y, x)

    def init_state(self, batch_size, *, max_length=None, dtype=None, device=None) -> RetNetState:
        like = self.like_parameters(dtype, device)
        memory = torch.zeros(batch_size, self.num_heads, self.key_dim, self.value_dim, **like)
        return RetNetState(memory, torch.zeros(batch_size, dtype=torch.int64, device=like["device"]))

    def prefill(self, x: Tensor, state: RetNetState) -> tuple[Tensor, RetNetState]:
        q, k, v, log_decay = self._project(x, state.position)
        y, final_state = decay_linear_attention(q, k, v, log_decay, state.memory)
        return self._output(y, x), RetNetState(stored(final_state(), state.memory.dtype), state.position + x.shape[1])

    def step(self, x: Tensor, state: RetNetState) -> tuple[Tensor, RetNetState]:
        x = x.unsqueeze(1)
        q, k, v, log_decay = (t.squeeze(2) for t in self._project(x, state.position))
        y, memory = decay_linear_attention_step(q, k, v, log_decay, state.memory)
        return self._output(y.unsqueeze(2), x).squeeze(1), RetNetState(memory, state.position + 1)

    def state_bytes(self, length: int, dtype: torch.dtype) -> int:
        return self.num_heads * self.key_dim * self.value_dim * dtype.itemsize + torch.int64.itemsize

    def _project(self, x: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries and keys [B, H, N, K], values [B, H, N, V], log-decays [B, H, N]; `start` [B or 1] of `x`."""
        q, k, v = (
            proj(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        position = start.unsqueeze(-1) + torch.arange(x.shape[1], device=x.device)  # [B or 1, N]
        head = torch.arange(self.num_heads, device=x.device, dtype=accumulation_dtype(x.dtype))
        log_decay = torch.log1p(-torch.exp2(-5 - head)).unsqueeze(-1).expand(q.shape[:-1])
        return rope(q, position) * self.key_dim**-0.5, rope(k, position), v, log_decay

    def _output(self, y: Tensor, x: Tensor) -> Tensor:
        """Normalise and gate each head [B, H, N, V], join the heads, project: [B, N, D]."""
        gate = self.g_proj(x).unflatten(-1, (self.num_heads, -1))
        return self.o_proj(self.g_norm_swish_gate(y.transpose(1, 2), gate).flatten(-2))
