"""A decode step of Based: Taylor linear attention for the far past and softmax attention over a small window.

Source: Arora et al. 2024, arXiv 2402.18668, section 4.
"""

from typing import NamedTuple

from torch import Tensor

from kernels.backend import Backend, takes_triton
from kernels.based_triton import fused_based_step
from kernels.linear_attention import LinearAttentionState
from kernels.sliding_window import RingBuffer, sliding_window_step
from kernels.taylor_attention import EPS, taylor_attention_step


class BasedState(NamedTuple):
    """What each of the two memories keeps."""

    linear_attention: LinearAttentionState
    sliding_window: RingBuffer


Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values of one token, [B, H, K], [B, H, K] and [B, H, V]."""


def based_step(
    far: Heads, near: Heads, state: BasedState, backend: Backend | None = None
) -> tuple[Tensor, Tensor, BasedState]:
    """The outputs [B, H, V] of the linear attention and of the window, and the new state.

    **Arguments:** `far`, `near`: the heads of either; of the window, G heads of keys and values may serve H of queries.
    Where Triton serves, the new state is in the place of the old one.
    """
    K, V, window_K, window_V = (t.shape[-1] for t in (far[1], far[2], near[1], near[2]))
    kept = (*state.linear_attention, *state.sliding_window[:2])
    if takes_triton("based_step", backend, (*far, *near), kept, K=K, V=V, window_K=window_K, window_V=window_V):
        S, z = state.linear_attention
        y, y_near = fused_based_step(*far, S, z, EPS, near, *state.sliding_window)
        state.sliding_window.length.add_(1)
        return y, y_near, state
    y, linear_attention = taylor_attention_step(*far, state.linear_attention, backend)
    y_near, sliding_window = sliding_window_step(*near, state.sliding_window, backend)
    return y, y_near, BasedState(linear_attention, sliding_window)
