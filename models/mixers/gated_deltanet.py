"""Gated DeltaNet: the delta rule, and a decay of the whole memory that each token decides.

    S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T,   a_t = exp(-exp(A_log) softplus(W_a x_t + dt_bias))
    out = W_o (rmsnorm(y) * silu(W_g x))

Queries, keys, values and b_t are DeltaNet's. Source: Yang, Kautz and Hatamizadeh 2024, arXiv 2412.06464, section 3; the
decay, Dao and Gu 2024, arXiv 2405.21060. Parameter names as in its reference, the `GatedDeltaNet` of
flash-linear-attention.
"""

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from models.mixer import accumulation_dtype
from models.mixers.deltanet import DeltaNet
from models.settings import SettingError
from models.time_step import time_step_bias


class GatedDeltaNet(DeltaNet):
    """DeltaNet with a decay a head and, if `use_gate`, an output gate.

    **Arguments:** `num_heads` H: each draws its decay at the start, from hardly any to most of the memory in a few
    steps, so that with a single head a run may begin unable to learn; `head_dim` K, by default such that all heads
    together are 3/4 of `d_model` wide, as in the reference; `expand_v` V / K; the others as DeltaNet's.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt = 2,
        head_dim: PositiveInt | None = None,
        expand_v: PositiveFloat = 2.0,
        use_short_conv: bool = True,
        conv_size: PositiveInt = 4,
        use_gate: bool = True,
        allow_neg_eigval: bool = False,
    ):
        head_dim = head_dim or max(3 * d_model // (4 * num_heads), 1)
        if not float(expand_v * head_dim).is_integer():
            expected = f"expand_v * head_dim must be a whole number, and head_dim = {head_dim}"
            raise SettingError("expand_v", expand_v, expected)
        expand_k = num_heads * head_dim / d_model
        super().__init__(
            d_model,
            num_heads,
            expand_k,
            expand_v * expand_k,
            use_short_conv,
            conv_size,
            use_gate,
            allow_neg_eigval=allow_neg_eigval,
        )
        self.a_proj = nn.Linear(d_model, num_heads, bias=False)
        self.A_log = nn.Parameter((16 * (1 - torch.rand(num_heads))).log())  # decay rates uniform in (0, 16]
        self.dt_bias = nn.Parameter(time_step_bias(num_heads))

    def _log_decay(self, x: Tensor) -> Tensor:
        wide = accumulation_dtype(x.dtype)
        dt = F.softplus(self.a_proj(x).to(wide) + self.dt_bias.to(wide))
        return (-self.A_log.to(wide).exp() * dt).transpose(1, 2)
