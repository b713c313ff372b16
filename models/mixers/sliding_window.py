"""Softmax attention over the last W positions, with a ring buffer of keys and values as its state.

Source: Beltagy et al. 2020, arXiv 2004.05150; the window of Based, Arora et al. 2024, arXiv 2402.18668, section 4.2.
"""

import torch
from pydantic import PositiveInt
from torch import Tensor

from kernels.sliding_window import RingBuffer, sliding_window_attention, sliding_window_step
from kernels.storage import stored
from models.attention_heads import AttentionHeads, Fraction


class SlidingWindow(AttentionHeads):
    """Multi-head softmax attention in which position t sees positions t - W + 1 .. t.

    **Arguments:** `window_size` W, the current position included; the rest as `AttentionHeads`.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        window_size: PositiveInt = 64,
        num_heads: PositiveInt = 1,
        num_kv_heads: PositiveInt | None = None,
        use_rope: bool = False,
        rope_fraction: Fraction = 1,
    ):
        super().__init__(d_model, num_heads, num_kv_heads, use_rope, rope_fraction)
        self.window_size = window_size

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x, torch.arange(x.shape[1], device=x.device)[None])
        y = sliding_window_attention(q, k, v, self.window_size)
        return self.join(y)

    def init_state(self, batch_size, *, max_length=None, dtype=None, device=None) -> RingBuffer:
        like = self.like_parameters(dtype, device)
        shape = (batch_size, self.window_size, self.num_kv_heads, self.head_dim)
        length = torch.zeros(batch_size, dtype=torch.int64, device=like["device"])
        return RingBuffer(torch.zeros(shape, **like), torch.zeros(shape, **like), length)

    def prefill(self, x: Tensor, state: RingBuffer) -> tuple[Tensor, RingBuffer]:
        N, W = x.shape[1], self.window_size
        q, k, v = self.project(x, state.length[:, None] + torch.arange(N, device=x.device))
        if N == 0:
            return self.join(q), state
        # Unroll the ring: the W positions before x, oldest first, then x.
        ago = torch.arange(-W, 0, device=x.device)
        before = state.length[:, None] + ago  # [B, W]
        rows = torch.arange(x.shape[0], device=x.device)[:, None]
        k, v = (
            torch.cat([ring[rows, before % W].to(x.dtype), t.transpose(1, 2)], dim=1)  # [B, W + N, G, K]
            for ring, t in ((state.k, k), (state.v, v))
        )
        y = sliding_window_attention(q, k[:, 1:].transpose(1, 2), v[:, 1:].transpose(1, 2), W, past=before[:, 1:] >= 0)
        # The last W of all positions go back, each to its own slot.
        slots = (before + N) % W
        state = RingBuffer(
            torch.empty_like(state.k).index_put((rows, slots), stored(k[:, N:], state.k.dtype)),
            torch.empty_like(state.v).index_put((rows, slots), stored(v[:, N:], state.v.dtype)),
            state.length + N,
        )
        return self.join(y), state

    def step(self, x: Tensor, state: RingBuffer) -> tuple[Tensor, RingBuffer]:
        y, state = sliding_window_step(*self.heads(x, state), state)
        return self.o_proj(y.flatten(1)), state

    def heads(self, x: Tensor, state: RingBuffer) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, K], keys and values [B, G, K] of one token [B, D]."""
        q, k, v = (t.squeeze(2) for t in self.project(x.unsqueeze(1), state.length[:, None]))
        return q, k, v

    def state_bytes(self, length: int, dtype: torch.dtype) -> int:
        return 2 * self.window_size * self.num_kv_heads * self.head_dim * dtype.itemsize + torch.int64.itemsize
