"""Linear attention with the second-order Taylor map: similarities 1 + s + s^2 / 2 of s = q . k / sqrt(K).

    y_t = sum over s <= t of w_ts v_s / sum over s <= t of w_ts,   w_ts = phi(q_t) . phi(k_s) = 1 + s + s^2 / 2

Source: Arora et al. 2024, arXiv 2402.18668, section 4.1. On a GPU the features phi never reach memory
(`kernels/taylor_attention_triton.py`).
"""

import torch
from torch import Tensor

from kernels.backend import Backend, takes_triton
from kernels.linear_attention import LinearAttentionState, linear_attention, linear_attention_step
from kernels.storage import stored
from kernels.taylor_attention_triton import fused_taylor_attention
from kernels.taylor_features import features
from kernels.taylor_step_triton import fused_taylor_step

EPS = 1e-6
"""Added to the sum of similarities, as `models.mixers.linear_attention` does for every map."""


def taylor_attention(
    q: Tensor, k: Tensor, v: Tensor, state: LinearAttentionState | None = None, backend: Backend | None = None
) -> tuple[Tensor, LinearAttentionState]:
    """The parallel form.

    **Arguments:** `q`, `k` [B, H, N, K]; `v` [B, H, N, V]; `state`: what came before; `backend`: as
    `kernels.backend` says.
    **Returns** outputs [B, H, N, V] and the state after all N tokens, in the dtype of `state`, by default float32.
    """
    if serves(q, k, v, state, backend):
        y, S, z = fused_taylor_attention(q, k, v, state, EPS, final=True)
        return y, LinearAttentionState(S, z)
    phi = features(q.shape[-1], q.device)
    y, total, final_state = linear_attention(q, k, v, phi, _similarity, state, sums=True)
    S, z = final_state()
    if state is not None:
        S, z = stored(S, state.S.dtype), z.to(state.z.dtype)
    return _normalised(y, total), LinearAttentionState(S, z)


def taylor_outputs(q: Tensor, k: Tensor, v: Tensor, backend: Backend | None = None) -> Tensor:
    """The outputs of the parallel form without a state, which then takes no time: [B, H, N, V]."""
    if serves(q, k, v, None, backend):
        return fused_taylor_attention(q, k, v, None, EPS, final=False)[0]
    y, total, _ = linear_attention(q, k, v, features(q.shape[-1], q.device), _similarity, sums=True)
    return _normalised(y, total)


def taylor_attention_step(
    q: Tensor, k: Tensor, v: Tensor, state: LinearAttentionState, backend: Backend | None = None
) -> tuple[Tensor, LinearAttentionState]:
    """The recurrent form: q, k [B, H, K], v [B, H, V], state as above -> output [B, H, V], new state.

    Triton writes the new state in the place of the old one.
    """
    if takes_triton("taylor_attention_step", backend, (q, k, v), state, K=q.shape[-1], V=v.shape[-1]):
        return fused_taylor_step(q, k, v, state, EPS), state
    phi = features(q.shape[-1], q.device)
    y, total, state = linear_attention_step(phi(q), phi(k), v, state, sums=True)
    return _normalised(y, total), state


def serves(q: Tensor, k: Tensor, v: Tensor, state: LinearAttentionState | None, backend: Backend | None = None) -> bool:
    """Whether Triton computes the parallel form; elsewhere a mixer, which has the features at hand, does so itself."""
    return takes_triton("taylor_attention", backend, (q, k, v), state or (), K=q.shape[-1], V=v.shape[-1])


def _normalised(y: Tensor, total: Tensor | None) -> Tensor:
    assert total is not None  # it was asked for
    wide = torch.promote_types(y.dtype, torch.float32)
    return (y.to(wide) / (total.to(wide) + EPS)).to(y.dtype)


def _similarity(q: Tensor, k: Tensor) -> Tensor:
    s = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return 1 + s + s * s / 2
