"""cosFormer: linear attention of relu features that weighs a key by the cosine of its distance.

    y_t = sum over s <= t of w_ts v_s / sum of w_ts,   w_ts = relu(q_t) . relu(k_s) cos(pi (t - s) / (2 M))

The cosine of a difference is cos cos + sin sin, so that 2 K features, relu(x) times the cosine and the sine of the
position, make it a linear attention. Its state has to know the position.
Source: Qin et al. 2022, arXiv 2202.08791, section 3.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from kernels.linear_attention import LinearAttentionState, linear_attention, linear_attention_step
from kernels.storage import stored
from models.mixer import Mixer, accumulation_dtype
from models.projections import project
from models.settings import SettingError

EPS = 1e-6
"""The least normaliser: relu features may all be zero."""


class CosFormerState(NamedTuple):
    """The sums over key features, 2 K of them, and the tokens so far."""

    memory: LinearAttentionState
    position: Tensor  # [B]


class CosFormer(Mixer):
    """Multi-head linear attention with cosFormer's features.

    **Arguments:** `feature_dim` K, the head width of queries and keys; `num_heads` H, which divides `d_model`;
    `horizon` M, the distance at which the weight of a key reaches zero; the paper takes the length of the sequence.
    Choose it no shorter than the longest sequence: weights turn negative beyond M, and the normaliser may vanish.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        feature_dim: PositiveInt = 16,
        num_heads: PositiveInt = 1,
        horizon: PositiveInt = 2048,
    ):
        super().__init__()
        if d_model % num_heads:
            raise SettingError("num_heads", num_heads, f"it must divide the model width d_model = {d_model}")
        self.d_model, self.feature_dim, self.num_heads, self.horizon = d_model, feature_dim, num_heads, horizon
        self.q_proj = nn.Linear(d_model, num_heads * feature_dim, bias=False)
        self.k_proj = nn.Linear(d_model, num_heads * feature_dim, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._project(x, torch.zeros(1, dtype=torch.int64, device=x.device))
        y, z, _ = linear_attention(q, k, v, _as_they_are, _products, sums=True)
        return self._output(y, z)

    def init_state(self, batch_size, *, max_length=None, dtype=None, device=None) -> CosFormerState:
        like = self.like_parameters(dtype, device)
        sums = (batch_size, self.num_heads, 2 * self.feature_dim)
        S = torch.zeros(*sums, self.d_model // self.num_heads, **like)
        z = torch.zeros(sums, **{**like, "dtype": accumulation_dtype(like["dtype"])})  # as in linear attention
        position = torch.zeros(batch_size, dtype=torch.int64, device=like["device"])
        return CosFormerState(LinearAttentionState(S, z), position)

    def prefill(self, x: Tensor, state: CosFormerState) -> tuple[Tensor, CosFormerState]:
        q, k, v = self._project(x, state.position)
        y, z, final_state = linear_attention(q, k, v, _as_they_are, _products, state.memory, sums=True)
        S, sums = final_state()
        memory = LinearAttentionState(stored(S, state.memory.S.dtype), sums.to(state.memory.z.dtype))
        return self._output(y, z), CosFormerState(memory, state.position + x.shape[1])

    def step(self, x: Tensor, state: CosFormerState) -> tuple[Tensor, CosFormerState]:
        q, k, v = (t.squeeze(2) for t in self._project(x.unsqueeze(1), state.position))
        y, z, memory = linear_attention_step(q, k, v, state.memory, sums=True)
        return self._output(y.unsqueeze(2), z).squeeze(1), CosFormerState(memory, state.position + 1)

    def state_bytes(self, length: int, dtype: torch.dtype) -> int:
        z = self.num_heads * accumulation_dtype(dtype).itemsize
        return 2 * self.feature_dim * (self.d_model * dtype.itemsize + z) + torch.int64.itemsize

    def _project(self, x: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of queries and keys [B, H, N, 2 K], values [B, H, N, V]; `start` [B or 1] of `x`."""
        q, k, v = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for t in project(x, self.q_proj, self.k_proj, self.v_proj)
        )
        position = start.unsqueeze(-1) + torch.arange(x.shape[1], device=x.device)  # [B or 1, N]
        # Whole turns of the circle go out as integers, before rounding.
        angle = (position % (4 * self.horizon)).to(accumulation_dtype(x.dtype)) * (math.pi / 2 / self.horizon)
        cos, sin = (t.to(x.dtype)[:, None, :, None] for t in (angle.cos(), angle.sin()))  # [B or 1, 1, N, 1]
        q, k = (torch.cat([F.relu(t) * cos, F.relu(t) * sin], dim=-1) for t in (q, k))
        return q, k, v

    def _output(self, y: Tensor, z: Tensor | None) -> Tensor:
        """Normalise [B, H, N, V] by the sums of similarities [B, H, N], join the heads, project: [B, N, D]."""
        assert z is not None  # it was asked for
        wide = accumulation_dtype(y.dtype)
        y = (y.to(wide) / z.to(wide).clamp_min(EPS).view(*y.shape[:-1], 1)).to(y.dtype)
        return self.o_proj(y.transpose(1, 2).flatten(-2))


def _as_they_are(features: Tensor) -> Tensor:
    return features


def _products(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2)
