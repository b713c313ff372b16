"""Linear attention: a running sum of phi(k) v^T, read by phi(q).

    y_t = phi(q_t) S_t / phi(q_t) z_t,   S_t = S_{t-1} + phi(k_t) v_t^T,   z_t = z_{t-1} + phi(k_t)

Source: Katharopoulos et al. 2020, arXiv 2006.16236, equations 16 to 20; with the Taylor map, Arora et al. 2024,
arXiv 2402.18668, section 4.1.
"""

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from kernels.linear_attention import linear_attention, linear_attention_step
from models.feature_maps import build_feature_map
from models.mixer import Mixer, accumulation_dtype
from models.settings import SettingError

EPS = 1e-6
"""Keeps 0 / 0 finite where a map gives no similarity at all (relu); far below the Taylor map's least value, 1/2."""


class LinearAttention(Mixer):
    """Multi-head linear attention with a feature map from `models.feature_maps`.

    The normaliser z is the last column of the state: values are extended by a one, so S and z are one tensor.

    **Arguments:** `feature_dim` K, the head width of queries and keys before phi; `num_heads` H, which divides
    `d_model`; `feature_map`: its name.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        feature_dim: PositiveInt = 16,
        num_heads: PositiveInt = 1,
        feature_map: str = "taylor",
    ):
        super().__init__()
        if d_model % num_heads:
            raise SettingError("num_heads", num_heads, f"it must divide the model width d_model = {d_model}")
        self.d_model, self.feature_dim, self.num_heads = d_model, feature_dim, num_heads
        self.head_dim = d_model // num_heads
        self.q_proj = nn.Linear(d_model, num_heads * feature_dim, bias=False)
        self.k_proj = nn.Linear(d_model, num_heads * feature_dim, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)
        self.phi = build_feature_map(feature_map, feature_dim)
        self.state_width = self.head_dim + self.phi.positive

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._project(x)
        y, _ = linear_attention(q, k, v, self.phi, self.phi.similarity)
        return self._output(y)

    def init_state(self, batch_size, *, max_length=None, dtype=None, device=None) -> Tensor:
        shape = (batch_size, self.num_heads, self.phi.expanded_dim, self.state_width)
        return torch.zeros(shape, **self.like_parameters(dtype, device))

    def prefill(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self._project(x)
        y, final_state = linear_attention(q, k, v, self.phi, self.phi.similarity, state)
        return self._output(y), final_state().to(state.dtype)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (t.squeeze(2) for t in self._project(x.unsqueeze(1)))
        y, state = linear_attention_step(self.phi(q), self.phi(k), v, state)
        return self._output(y.unsqueeze(2)).squeeze(1), state

    def state_bytes(self, length: int, dtype: torch.dtype) -> int:
        return self.num_heads * self.phi.expanded_dim * self.state_width * dtype.itemsize

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys [B, H, N, K], values [B, H, N, V] or, where phi is positive, [B, H, N, V + 1]."""
        q, k, v = (
            proj(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return q, k, F.pad(v, (0, 1), value=1.0) if self.phi.positive else v

    def _output(self, y: Tensor) -> Tensor:
        """Normalise [B, H, N, V + 1] by its last column, join the heads, project: [B, N, D]."""
        if self.phi.positive:
            wide = y.to(accumulation_dtype(y.dtype))
            y = (wide[..., :-1] / (wide[..., -1:] + EPS)).to(y.dtype)
        return self.o_proj(y.transpose(1, 2).flatten(-2))
