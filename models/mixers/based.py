"""Based in one layer: Taylor linear attention for the far past plus a small exact window for the near past.

The published models alternate the two in layers of their own (`model=based`); here both read the same input and their
outputs add, so that one layer has both memories and one state holds both.
Source: Arora et al. 2024, arXiv 2402.18668, section 4.
"""

import torch
from pydantic import PositiveInt
from torch import Tensor

from kernels.based import BasedState, based_step
from models.mixer import Mixer
from models.mixers.linear_attention import LinearAttention
from models.mixers.sliding_window import SlidingWindow


class Based(Mixer):
    """Linear attention and sliding-window attention, added.

    **Arguments:** `feature_dim` K and `feature_map` of the linear attention; `window_size` W of the window;
    `num_heads` H of both.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        feature_dim: PositiveInt = 16,
        window_size: PositiveInt = 16,
        num_heads: PositiveInt = 1,
        feature_map: str = "taylor",
    ):
        super().__init__()
        self.d_model = d_model
        self.linear_attention = LinearAttention(d_model, feature_dim, num_heads, feature_map)
        self.sliding_window = SlidingWindow(d_model, window_size, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_attention(x) + self.sliding_window(x)

    def init_state(self, batch_size, *, max_length=None, dtype=None, device=None) -> BasedState:
        like = self.like_parameters(dtype, device)
        return BasedState(
            self.linear_attention.init_state(batch_size, **like), self.sliding_window.init_state(batch_size, **like)
        )

    def prefill(self, x: Tensor, state: BasedState) -> tuple[Tensor, BasedState]:
        far, linear_attention = self.linear_attention.prefill(x, state.linear_attention)
        near, sliding_window = self.sliding_window.prefill(x, state.sliding_window)
        return far + near, BasedState(linear_attention, sliding_window)

    def step(self, x: Tensor, state: BasedState) -> tuple[Tensor, BasedState]:
        linear, window = self.linear_attention, self.sliding_window
        if linear.is_fused(x, state.linear_attention):
            far, near, state = based_step(linear.heads(x), window.heads(x, state.sliding_window), state)
            return linear.o_proj(far.flatten(1)) + window.o_proj(near.flatten(1)), state
        far, linear_attention = linear.step(x, state.linear_attention)
        near, sliding_window = window.step(x, state.sliding_window)
        return far + near, BasedState(linear_attention, sliding_window)

    def state_bytes(self, length: int, dtype: torch.dtype) -> int:
        return self.linear_attention.state_bytes(length, dtype) + self.sliding_window.state_bytes(length, dtype)
