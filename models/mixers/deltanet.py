"""DeltaNet: a linear memory that replaces what it holds for a key instead of adding to it.

    S_t = (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T,   y_t = q_t S_t / sqrt(K),   b_t = sigmoid(W_b x_t)
    q, k = silu(conv(W x)) / |.|,   v = silu(conv(W_v x)),   out = W_o rmsnorm(y)

Source: Yang et al. 2024, arXiv 2406.06484, sections 2 and 3; the rule itself, Schlag et al. 2021, arXiv 2102.11174.
Parameter names as in its reference, the `DeltaNet` of flash-linear-attention.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from kernels.delta_rule import delta_rule, delta_rule_step
from kernels.short_conv import short_conv, short_conv_step
from kernels.storage import stored
from models.convolution import ShortConvolution
from models.gated_norm import GatedRMSNorm
from models.head_width import head_width
from models.mixer import Mixer, accumulation_dtype

EPS = 1e-6
"""Of the norm of queries and keys, as in the reference."""

ACTIVATIONS = {"relu": F.relu, "elu": lambda x: F.elu(x) + 1, "identity": lambda x: x}


class DeltaNetState(NamedTuple):
    """The inputs of the short convolutions of queries, keys and values, side by side; the memory of every head."""

    conv: Tensor  # [B, k - 1, H (2 K + V)]
    memory: Tensor  # [B, H, K, V]


class DeltaNet(Mixer):
    """The delta rule on normalised keys, after short convolutions.

    **Arguments:** `num_heads` H: at the widths of recall studies one head is as wide as the paper's; `expand_k`,
    `expand_v`: the width of the keys of all heads, and of their values, in multiples of `d_model`; `conv_size` k of the
    short convolutions, if `use_short_conv`; `use_gate`: multiply the normalised output by silu(W_g x);
    `qk_activation`, `qk_norm` of queries and keys (the "sum" norm divides by the sum of magnitudes);
    `allow_neg_eigval`: b_t up to 2, so that a memory can flip sign (Grazzi et al. 2024, arXiv 2411.12537).
    """

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt = 1,
        expand_k: PositiveFloat = 1.0,
        expand_v: PositiveFloat = 1.0,
        use_short_conv: bool = True,
        conv_size: PositiveInt = 4,
        use_gate: bool = False,
        qk_activation: Literal["silu", "relu", "elu", "identity"] = "silu",
        qk_norm: Literal["l2", "sum"] = "l2",
        allow_neg_eigval: bool = False,
    ):
        super().__init__()
        self.d_model, self.num_heads = d_model, num_heads
        self.key_dim = head_width("expand_k", expand_k, d_model, num_heads)
        self.value_dim = head_width("expand_v", expand_v, d_model, num_heads)
        self.conv_size = conv_size if use_short_conv else 1
        self.qk_activation, self.qk_norm, self.allow_neg_eigval = qk_activation, qk_norm, allow_neg_eigval
        keys, values = num_heads * self.key_dim, num_heads * self.value_dim
        self.widths = [keys, keys, values]
        self.q_proj = nn.Linear(d_model, keys, bias=False)
        self.k_proj = nn.Linear(d_model, keys, bias=False)
        self.v_proj = nn.Linear(d_model, values, bias=False)
        self.b_proj = nn.Linear(d_model, num_heads, bias=False)
        self.q_conv1d = ShortConvolution(keys, conv_size) if use_short_conv else None
        self.k_conv1d = ShortConvolution(keys, conv_size) if use_short_conv else None
        self.v_conv1d = ShortConvolution(values, conv_size) if use_short_conv else None
        self.g_proj = nn.Linear(d_model, values, bias=False) if use_gate else None
        self.o_norm = GatedRMSNorm(self.value_dim)
        self.o_proj = nn.Linear(values, d_model, bias=False)

    def init_state(self, batch_size, *, max_length=None, dtype=None, device=None) -> DeltaNetState:
        like = self.like_parameters(dtype, device)
        conv = torch.zeros(batch_size, self.conv_size - 1, sum(self.widths), **like)
        return DeltaNetState(conv, torch.zeros(batch_size, self.num_heads, self.key_dim, self.value_dim, **like))

    def prefill(self, x: Tensor, state: DeltaNetState) -> tuple[Tensor, DeltaNetState]:
        qkv, conv = short_conv(self._project(x), self._filters(x), None, state.conv, silu=self._all_silu)
        y, memory = delta_rule(*self._select(qkv, x), state.memory)
        return self._output(y, x), DeltaNetState(conv, stored(memory, state.memory.dtype))

    def step(self, x: Tensor, state: DeltaNetState) -> tuple[Tensor, DeltaNetState]:
        qkv, conv = short_conv_step(self._project(x), self._filters(x), None, state.conv, silu=self._all_silu)
        x = x.unsqueeze(1)
        *tensors, log_decay = self._select(qkv.unsqueeze(1), x)
        q, k, v, beta = (t.squeeze(2) for t in tensors)
        log_decay = None if log_decay is None else log_decay.squeeze(2)
        y, memory = delta_rule_step(q, k, v, beta, log_decay, state.memory)
        return self._output(y.unsqueeze(2), x).squeeze(1), DeltaNetState(conv, memory)

    def state_bytes(self, length: int, dtype: torch.dtype) -> int:
        memory = self.num_heads * self.key_dim * self.value_dim
        return ((self.conv_size - 1) * sum(self.widths) + memory) * dtype.itemsize

    @property
    def _all_silu(self) -> bool:
        """Whether queries, keys and values have one activation, which is then applied with their convolution."""
        return self.qk_activation == "silu"

    def _project(self, x: Tensor) -> Tensor:
        """Queries, keys and values before their convolutions, side by side: [..., H (2 K + V)]."""
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)

    def _filters(self, x: Tensor) -> Tensor:
        """The weights of the three convolutions as one [H (2 K + V), 1, k], the identity where there are none."""
        convs = (self.q_conv1d, self.k_conv1d, self.v_conv1d)
        weights = [conv.weight for conv in convs if conv is not None]
        return torch.cat(weights) if weights else x.new_ones(sum(self.widths), 1, 1)

    def _select(self, qkv: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Queries and keys [B, H, N, K], values [B, H, N, V], rates b [B, H, N], log-decays [B, H, N] if any."""
        wide = accumulation_dtype(x.dtype)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in qkv.split(self.widths, dim=-1))
        if not self._all_silu:
            q, k, v = (*(ACTIVATIONS[self.qk_activation](t) for t in (q, k)), F.silu(v))
        q, k = (self._normalise(t.to(wide)) for t in (q, k))
        beta = self.b_proj(x).to(wide).sigmoid().transpose(1, 2) * (2 if self.allow_neg_eigval else 1)
        return q * self.key_dim**-0.5, k, v, beta, self._log_decay(x)

    def _normalise(self, x: Tensor) -> Tensor:
        if self.qk_norm == "sum":
            return F.normalize(x, p=1, dim=-1, eps=EPS)
        return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS)

    def _log_decay(self, x: Tensor) -> Tensor | None:
        """How much of the memory each step keeps, as a logarithm [B, H, N]; None where it is all, as here."""
        return None

    def _output(self, y: Tensor, x: Tensor) -> Tensor:
        """Normalise and gate each head [B, H, N, V], join the heads, project: [B, N, D]."""
        gate = None if self.g_proj is None else self.g_proj(x).unflatten(-1, (self.num_heads, -1))
        return self.o_proj(self.o_norm(y.transpose(1, 2), gate).flatten(-2))
