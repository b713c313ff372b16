"""Gated linear attention: every key channel of the memory forgets at a rate that the token decides.

    S_t = diag(a_t) S_{t-1} + k_t v_t^T,   y_t = q_t S_t / sqrt(K),   a_t = sigmoid(W_2 W_1 x_t + b)^(1 / tau)
    out = W_o (rmsnorm(y) * silu(W_g x))

Source: Yang et al. 2023, arXiv 2312.06635, section 4. Parameter names as in its reference, `GatedLinearAttention` of
flash-linear-attention.
"""

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from kernels.gated_linear_attention import gated_linear_attention, gated_linear_attention_step
from kernels.storage import stored
from models.gated_norm import GatedRMSNorm
from models.head_width import head_width
from models.mixer import Mixer, accumulation_dtype


class GatedLinearAttention(Mixer):
    """Multi-head gated linear attention, whose state is its memory [B, H, K, V].

    **Arguments:** `num_heads` H: at the widths of recall studies one head is as wide as the paper's; `expand_k`,
    `expand_v`: the width of the keys of all heads, and of their values, in multiples of `d_model`;
    `gate_low_rank_dim`, rank of the decay's projection; `gate_logit_normalizer` tau: the larger, the slower it forgets.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt = 1,
        expand_k: PositiveFloat = 0.5,
        expand_v: PositiveFloat = 1.0,
        gate_low_rank_dim: PositiveInt = 16,
        gate_logit_normalizer: PositiveFloat = 16.0,
    ):
        super().__init__()
        self.d_model, self.num_heads = d_model, num_heads
        self.gate_logit_normalizer = gate_logit_normalizer
        self.key_dim = head_width("expand_k", expand_k, d_model, num_heads)
        self.value_dim = head_width("expand_v", expand_v, d_model, num_heads)
        self.q_proj = nn.Linear(d_model, num_heads * self.key_dim, bias=False)
        self.k_proj = nn.Linear(d_model, num_heads * self.key_dim, bias=False)
        self.v_proj = nn.Linear(d_model, num_heads * self.value_dim, bias=False)
        self.g_proj = nn.Linear(d_model, num_heads * self.value_dim, bias=False)
        self.gk_proj = nn.Sequential(
            nn.Linear(d_model, gate_low_rank_dim, bias=False), nn.Linear(gate_low_rank_dim, num_heads * self.key_dim)
        )
        self.g_norm_swish_gate = GatedRMSNorm(self.value_dim)
        self.o_proj = nn.Linear(num_heads * self.value_dim, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = gated_linear_attention(*self._project(x))
        return self._output(y, x)

    def init_state(self, batch_size, *, max_length=None, dtype=None, device=None) -> Tensor:
        shape = (batch_size, self.num_heads, self.key_dim, self.value_dim)
        return torch.zeros(shape, **self.like_parameters(dtype, device))

    def prefill(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, final_state = gated_linear_attention(*self._project(x), state)
        return self._output(y, x), stored(final_state(), state.dtype)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x = x.unsqueeze(1)
        q, k, v, log_decay = (t.squeeze(2) for t in self._project(x))
        y, state = gated_linear_attention_step(q, k, v, log_decay, state)
        return self._output(y.unsqueeze(2), x).squeeze(1), state

    def state_bytes(self, length: int, dtype: torch.dtype) -> int:
        return self.num_heads * self.key_dim * self.value_dim * dtype.itemsize

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys [B, H, N, K], values [B, H, N, V], log-decays [B, H, N, K]."""
        q, k, v, gate = (
            proj(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj, self.gk_proj)
        )
        log_decay = F.logsigmoid(gate.to(accumulation_dtype(gate.dtype))) / self.gate_logit_normalizer
        return q * self.key_dim**-0.5, k, v, log_decay

    def _output(self, y: Tensor, x: Tensor) -> Tensor:
        """Normalise and gate each head [B, H, N, V], join the heads, project: [B, N, D]."""
        gate = self.g_proj(x).unflatten(-1, (self.num_heads, -1))
        return self.o_proj(self.g_norm_swish_gate(y.transpose(1, 2), gate).flatten(-2))
