"""Softmax attention over the whole past. Source: Vaswani et al. 2017, arXiv 1706.03762, equation 1.

Its state is every key and value it has seen, so its bytes grow with the sequence: the reference point of the study.
"""

from typing import NamedTuple

import torch
from pydantic import PositiveInt
from torch import Tensor

from kernels.attention import attention_step, causal_attention, masked_attention
from kernels.storage import stored
from models.attention_heads import AttentionHeads, Fraction


class GrowingCache(NamedTuple):
    """Keys and values of the past, grown by every token."""

    k: Tensor  # [B, G, n, K]
    v: Tensor  # [B, G, n, K]


class FixedCache(NamedTuple):
    """Keys and values in a capacity of C tokens, the first `length` of them real, written in place."""

    k: Tensor  # [B, G, C, K]
    v: Tensor  # [B, G, C, K]
    length: Tensor  # [B]


KeyValueCache = GrowingCache | FixedCache


class Attention(AttentionHeads):
    """Multi-head softmax attention; arguments as `AttentionHeads`."""

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt = 1,
        num_kv_heads: PositiveInt | None = None,
        use_rope: bool = False,
        rope_fraction: Fraction = 1,
    ):
        super().__init__(d_model, num_heads, num_kv_heads, use_rope, rope_fraction)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x, torch.arange(x.shape[1], device=x.device)[None])
        return self.join(causal_attention(q, self.repeat(k), self.repeat(v)))

    def init_state(self, batch_size, *, max_length=None, dtype=None, device=None) -> KeyValueCache:
        like = self.like_parameters(dtype, device)
        shape = (batch_size, self.num_kv_heads, max_length or 0, self.head_dim)
        k, v = torch.zeros(shape, **like), torch.zeros(shape, **like)
        if max_length is None:
            return GrowingCache(k, v)
        return FixedCache(k, v, torch.zeros(batch_size, dtype=torch.int64, device=like["device"]))

    def prefill(self, x: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        position = torch.arange(x.shape[1], device=x.device)[None]
        position = position + (state.length[:, None] if isinstance(state, FixedCache) else state.k.shape[2])
        q, k, v = self.project(x, position)
        first = isinstance(state, GrowingCache) and state.k.shape[2] == 0
        state = _append(state, k, v, position)
        if first:  # no mask, and the quickest kernels
            return self.join(causal_attention(q, self.repeat(k), self.repeat(v))), state
        slot = torch.arange(state.k.shape[2], device=x.device)
        visible = (slot <= position[..., None])[:, None]  # [B or 1, 1, N, C]
        k, v = (self.repeat(t.to(x.dtype)) for t in (state.k, state.v))
        return self.join(masked_attention(q, k, v, visible)), state

    def step(self, x: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        if isinstance(state, GrowingCache):
            y, state = self.prefill(x.unsqueeze(1), state)
            return y.squeeze(1), state
        q, k, v = (t.squeeze(2) for t in self.project(x.unsqueeze(1), state.length[:, None]))
        y = attention_step(q, k, v, *state)
        return self.o_proj(y.flatten(1)), FixedCache(state.k, state.v, state.length.add_(1))

    def state_bytes(self, length: int, dtype: torch.dtype) -> int:
        return 2 * length * self.num_kv_heads * self.head_dim * dtype.itemsize


def _append(state: KeyValueCache, k: Tensor, v: Tensor, position: Tensor) -> KeyValueCache:
    """Add keys and values [B, G, N, K] behind those held: grown by concatenation, or in place in a fixed capacity."""
    k, v = stored(k, state.k.dtype), stored(v, state.v.dtype)
    if isinstance(state, GrowingCache):
        return GrowingCache(torch.cat([state.k, k], dim=2), torch.cat([state.v, v], dim=2))
    rows = torch.arange(k.shape[0], device=k.device)[:, None]
    state.k[rows, :, position] = k.transpose(1, 2)  # [B, N, G, K], as torch orders what it takes by two indices
    state.v[rows, :, position] = v.transpose(1, 2)
    return FixedCache(state.k, state.v, state.length.add_(k.shape[2]))
