"""The delta rule: a memory that replaces what it holds for a key, and may forget a part of everything at each step.

    S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T,   y_t = q_t S_t

With u_t = b_t (v_t - a_t k_t S_{t-1}), the error of what the memory predicts, it is S_t = a_t S_{t-1} + k_t u_t^T. In a
chunk these u solve a unit triangular system and are affine in the state S before the chunk: u = U - W S.
Source: Yang et al. 2024, arXiv 2406.06484, section 3, without decay (the WY form, and its UT transform for the solve);
Yang, Kautz and Hatamizadeh 2024, arXiv 2412.06464, section 3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import recurrences_of_fla
from kernels.backend import Backend
from kernels.chunk_states import chunk_states
from kernels.decay_attention import segment_sums
from kernels.recurrences_of_fla import takes_fla
from kernels.storage import stored
from kernels.unit_triangular import unit_triangular_solve

CHUNK = 32
"""Positions a chunk: longer ones cost more in the solve, shorter ones more in the K x K maps from state to state."""


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    chunk: int = CHUNK,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """The parallel form: a triangular solve within a chunk, an affine map of the state from chunk to chunk.

    **Arguments:** `q`, `k` [B, H, N, K]; `v` [B, H, N, V]; `beta` b_t [B, H, N], with b_t |k_t|^2 from 0 to 2, beyond
    which the memory diverges; `log_decay` log a_t <= 0 [B, H, N], None where nothing is forgotten; `state`
    [B, H, K, V]; `chunk` of the reference; `backend`: as `kernels.backend` says.
    **Returns** outputs [B, H, N, V] and the state after all N tokens [B, H, K, V] (float32 or wider).
    """
    if takes_fla(backend, v):
        return recurrences_of_fla.delta_rule(q, k, v, beta, log_decay, state)
    N, narrow, wide = v.shape[2], v.dtype, torch.promote_types(v.dtype, torch.float32)
    if N == 0:
        return v, state.to(wide)
    C = min(chunk, N)
    # A padded position has b = 0 and a = 1: it changes nothing.
    q, k, v, beta = (
        F.pad(t.to(wide), (0, 0, 0, -N % C)).unflatten(2, (-1, C)) for t in (q, k, v, beta.unsqueeze(-1))
    )  # [B, H, n, C, *]
    decay, since_start = _decays(log_decay, C, beta)
    bk = beta * k

    # (I + L) u = b (v - a k S), where L_ij = b_i k_i . k_j decay_ij below the diagonal
    L = bk @ k.transpose(-1, -2) * decay
    right = torch.cat([beta * v, since_start * bk], dim=-1)
    UW = unit_triangular_solve(L, right, backend)
    U, W = UW.split([v.shape[-1], k.shape[-1]], dim=-1)

    K_end = (decay[..., -1, :, None] * k).transpose(-1, -2)  # keys decayed to the end of the chunk
    kept = since_start[..., -1:, :] * torch.eye(k.shape[-1], dtype=wide, device=k.device)
    states = chunk_states(kept - K_end @ W, K_end @ U, state.to(wide))
    A = q @ k.transpose(-1, -2) * decay
    out = A @ U + (since_start * q - A @ W) @ states[:, :, :-1]
    return out.flatten(2, 3)[:, :, :N].to(narrow), states[:, :, -1].clone()


def _decays(log_decay: Tensor | None, C: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Within chunks, of row i since column j <= i [B, H, n, C, C], and since the start [B, H, n, C, 1]; fewer if 1."""
    if log_decay is None:
        return like.new_ones(C, C).tril(), like.new_ones(1, 1)
    log_decay = F.pad(log_decay.to(like.dtype), (0, -log_decay.shape[2] % C)).unflatten(2, (-1, C))
    return segment_sums(log_decay).exp(), log_decay.cumsum(-1).exp().unsqueeze(-1)


def delta_rule_step(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrent form: q, k [B, H, K], v [B, H, V], beta, log_decay [B, H], state [B, H, K, V] -> [B, H, V], state.

    The new state has the dtype of the old.
    """
    wide = torch.promote_types(v.dtype, torch.float32)
    q, k, S = q.to(wide).unsqueeze(-2), k.to(wide).unsqueeze(-2), state.to(wide)
    if log_decay is not None:
        S = log_decay.to(wide).exp()[..., None, None] * S
    u = beta.to(wide)[..., None, None] * (v.to(wide).unsqueeze(-2) - k @ S)  # [B, H, 1, V]
    S = S + k.transpose(-1, -2) * u
    return (q @ S).squeeze(-2).to(v.dtype), stored(S, state.dtype)
