"""Softmax attention over the whole past. Source: Vaswani et al. 2017, arXiv 1706.03762, equation 1.

Its state is every key and value it has seen, so its bytes grow with the sequence: the reference point of the study.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from models.mixer import Mixer
from models.rope import rope
from models.settings import SettingError


class GrowingCache(NamedTuple):
    """Keys and values of the past, grown by every token."""

    k: Tensor  # [B, n, G, K]
    v: Tensor  # [B, n, G, K]


class FixedCache(NamedTuple):
    """Keys and values in a capacity of C tokens, the first `length` of them real, written in place."""

    k: Tensor  # [B, C, G, K]
    v: Tensor  # [B, C, G, K]
    length: Tensor  # [B]


KeyValueCache = GrowingCache | FixedCache


class Attention(Mixer):
    """Multi-head softmax attention, optionally with rotary positions and with fewer key-value heads than heads.

    **Arguments:** `num_heads` H, which divides `d_model`; `num_kv_heads` G, which divides H and defaults to it
    (Ainslie et al. 2023, arXiv 2305.13245); `use_rope`: rotate queries and keys by their position.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt = 1,
        num_kv_heads: PositiveInt | None = None,
        use_rope: bool = False,
    ):
        super().__init__()
        if d_model % num_heads:
            raise SettingError("num_heads", num_heads, f"it must divide the model width d_model = {d_model}")
        if num_kv_heads is not None and num_heads % num_kv_heads:
            raise SettingError("num_kv_heads", num_kv_heads, f"it must divide num_heads = {num_heads}")
        if use_rope and (width := d_model // num_heads) % 2:
            raise SettingError("use_rope", use_rope, f"it needs an even head width, and d_model / num_heads = {width}")
        self.d_model, self.num_heads, self.num_kv_heads = d_model, num_heads, num_kv_heads or num_heads
        self.head_dim = d_model // num_heads
        self.use_rope = use_rope
        kv_width = self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, kv_width, bias=False)
        self.v_proj = nn.Linear(d_model, kv_width, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._project(x, torch.arange(x.shape[1], device=x.device)[None])
        return self._attend(q, k, v, None)

    def init_state(self, batch_size, *, max_length=None, dtype=None, device=None) -> KeyValueCache:
        like = self.like_parameters(dtype, device)
        shape = (batch_size, max_length or 0, self.num_kv_heads, self.head_dim)
        k, v = torch.zeros(shape, **like), torch.zeros(shape, **like)
        if max_length is None:
            return GrowingCache(k, v)
        return FixedCache(k, v, torch.zeros(batch_size, dtype=torch.int64, device=like["device"]))

    def prefill(self, x: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        position = torch.arange(x.shape[1], device=x.device)[None]
        position = position + (state.length[:, None] if isinstance(state, FixedCache) else state.k.shape[1])
        q, k, v = self._project(x, position)
        state = _append(state, k.transpose(1, 2), v.transpose(1, 2), position)
        slot = torch.arange(state.k.shape[1], device=x.device)
        visible = (slot <= position[..., None])[:, None]  # [B or 1, 1, N, C]
        k, v = (t.transpose(1, 2).to(x.dtype) for t in (state.k, state.v))
        return self._attend(q, k, v, visible), state

    def step(self, x: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        y, state = self.prefill(x.unsqueeze(1), state)
        return y.squeeze(1), state

    def state_bytes(self, length: int, dtype: torch.dtype) -> int:
        return 2 * length * self.num_kv_heads * self.head_dim * dtype.itemsize

    def _project(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, N, K], keys and values [B, G, N, K]."""
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return (rope(q, position), rope(k, position), v) if self.use_rope else (q, k, v)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        grouped = self.num_kv_heads != self.num_heads
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None, enable_gqa=grouped)
        return self.o_proj(y.transpose(1, 2).flatten(-2))


def _append(state: KeyValueCache, k: Tensor, v: Tensor, position: Tensor) -> KeyValueCache:
    """Add keys and values [B, N, G, K] behind those held: grown by concatenation, or in place in a fixed capacity."""
    k, v = k.to(state.k.dtype), v.to(state.v.dtype)
    if isinstance(state, GrowingCache):
        return GrowingCache(torch.cat([state.k, k], dim=1), torch.cat([state.v, v], dim=1))
    rows = torch.arange(k.shape[0], device=k.device)[:, None]
    state.k[rows, position] = k
    state.v[rows, position] = v
    return FixedCache(state.k, state.v, state.length.add_(k.shape[1]))
