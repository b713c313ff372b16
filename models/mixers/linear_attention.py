"""Linear attention: a running sum of phi(k) v^T, read by phi(q).

    y_t = phi(q_t) S_t / phi(q_t) z_t,   S_t = S_{t-1} + phi(k_t) v_t^T,   z_t = z_{t-1} + phi(k_t)

Source: Katharopoulos et al. 2020, arXiv 2006.16236, equations 16 to 20; with the Taylor map, Arora et al. 2024,
arXiv 2402.18668, section 4.1.
"""

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from kernels.backend import takes_triton
from kernels.linear_attention import LinearAttentionState, linear_attention, linear_attention_step
from kernels.storage import stored
from kernels.taylor_attention import serves, taylor_attention, taylor_attention_step, taylor_outputs
from models.feature_maps import build_feature_map
from models.mixer import Mixer, accumulation_dtype
from models.projections import project
from models.settings import SettingError

EPS = 1e-6
"""Keeps 0 / 0 finite where a map gives no similarity at all (relu); far below the Taylor map's least value, 1/2."""


class LinearAttention(Mixer):
    """Multi-head linear attention with a feature map from `models.feature_maps`.

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
        self.is_taylor = feature_map == "taylor"

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._project(x)
        if self.is_taylor and serves(q, k, v, None):
            return self.join(taylor_outputs(q, k, v))
        y, z, _ = linear_attention(q, k, v, self.phi, self.phi.similarity, sums=self.phi.positive)
        return self.join(self._normalised(y, z))

    def init_state(self, batch_size, *, max_length=None, dtype=None, device=None) -> LinearAttentionState:
        like = self.like_parameters(dtype, device)
        B, H, F = batch_size, self.num_heads, self.phi.expanded_dim
        # z counts tokens: in bfloat16 it would stop at 256.
        z = torch.zeros(B, H, F if self.phi.positive else 0, **{**like, "dtype": accumulation_dtype(like["dtype"])})
        return LinearAttentionState(torch.zeros(B, H, F, self.head_dim, **like), z)

    def prefill(self, x: Tensor, state: LinearAttentionState) -> tuple[Tensor, LinearAttentionState]:
        q, k, v = self._project(x)
        if self.is_taylor and serves(q, k, v, state):
            y, state = taylor_attention(q, k, v, state)
            return self.join(y), state
        y, z, final_state = linear_attention(q, k, v, self.phi, self.phi.similarity, state, sums=self.phi.positive)
        S, sums = final_state()
        state = LinearAttentionState(stored(S, state.S.dtype), sums.to(state.z.dtype))
        return self.join(self._normalised(y, z)), state

    def step(self, x: Tensor, state: LinearAttentionState) -> tuple[Tensor, LinearAttentionState]:
        q, k, v = self.heads(x)
        if self.is_fused(x, state):
            y, state = taylor_attention_step(q, k, v, state)
            return self.o_proj(y.flatten(1)), state
        y, z, state = linear_attention_step(self.phi(q), self.phi(k), v, state, sums=self.phi.positive)
        return self.o_proj(self._normalised(y, z).flatten(1)), state

    def is_fused(self, x: Tensor, state: LinearAttentionState) -> bool:
        """Whether Triton computes a step. Elsewhere a mixer has the features at hand, which that of `kernels` makes."""
        sizes = {"K": self.feature_dim, "V": self.head_dim}
        return self.is_taylor and takes_triton("taylor_attention_step", None, (x,), state, **sizes)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys [B, H, K], values [B, H, V] of one token [B, D]."""
        q, k, v = (t.squeeze(2) for t in self._project(x.unsqueeze(1)))
        return q, k, v

    def state_bytes(self, length: int, dtype: torch.dtype) -> int:
        z = accumulation_dtype(dtype).itemsize if self.phi.positive else 0
        return self.num_heads * self.phi.expanded_dim * (self.head_dim * dtype.itemsize + z)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys [B, H, N, K], values [B, H, N, V]."""
        q, k, v = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for t in project(x, self.q_proj, self.k_proj, self.v_proj)
        )
        return q, k, v

    def join(self, y: Tensor) -> Tensor:
        """Join the heads [B, H, N, V] and project: [B, N, D]."""
        return self.o_proj(y.transpose(1, 2).flatten(-2))

    @staticmethod
    def _normalised(y: Tensor, z: Tensor | None) -> Tensor:
        """[..., V] by the sums of similarities [..., 1], where they are."""
        if z is None:
            return y
        wide = accumulation_dtype(y.dtype)
        return (y.to(wide) / (z.to(wide) + EPS)).to(y.dtype)
