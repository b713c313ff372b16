"""Linear attention whose state decays by one number a key channel: S_t = diag(a_t) S_{t-1} + k_t v_t^T, y_t = q_t S_t.

Source: Yang et al. 2023, arXiv 2312.06635, section 4.
Cost a token and head, chunks of C: C (K + V) / 2 multiply-adds inside the chunk, 2 K V across chunks.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import recurrences_of_fla
from kernels.backend import Backend
from kernels.channel_decay import decayed_products
from kernels.decay_attention import decay_linear_attention
from kernels.recurrences_of_fla import takes_fla
from kernels.storage import stored

CHUNK = 64
"""Positions a chunk, a power of two."""


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    chunk: int = CHUNK,
    backend: Backend | None = None,
) -> tuple[Tensor, Callable[[], Tensor]]:
    """The parallel form: dense within a chunk, through the state across chunks.

    **Arguments:** `q`, `k` [B, H, N, K]; `v` [B, H, N, V]; `log_decay` log a_t <= 0, [B, H, N, K]; `state`
    [B, H, K, V], what came before; `chunk` of the reference, a power of two; `backend`: as `kernels.backend` says.
    **Returns** outputs [B, H, N, V] and a function that gives the state after all N tokens [B, H, K, V] (float32 or
    wider), which a caller that only wants the outputs never pays for.
    """
    if takes_fla(backend, v):
        y, final = recurrences_of_fla.gated_linear_attention(q, k, v, log_decay, state)
        return y, lambda: final
    N, wide = v.shape[2], torch.promote_types(v.dtype, torch.float32)
    if N == 0:
        shape = (*k.shape[:2], k.shape[-1], v.shape[-1])
        return v, lambda: v.new_zeros(shape, dtype=wide) if state is None else state.to(wide)
    C = min(chunk, 1 << (N - 1).bit_length())
    # A padded position adds nothing and decays nothing.
    qc, kc, vc, log_decay = (
        F.pad(t.to(wide), (0, 0, 0, -N % C)).unflatten(2, (-1, C)) for t in (q, k, v, log_decay)
    )  # [B, H, n, C, *]
    decay = log_decay.exp()
    products, from_start, to_end = decayed_products(
        (decay * qc).unsqueeze(-2), kc.unsqueeze(-2), decay, (qc * kc).sum(-1)[..., None, None]
    )
    out = products.flatten(-4, -3).flatten(-2) @ vc  # [B, H, n, C, V]

    def added() -> Tensor:
        """What each chunk adds to the state: [B, H, n, K, V]."""
        return to_end.squeeze(-2).transpose(-1, -2) @ vc

    if state is None and out.shape[2] == 1:
        return out.flatten(2, 3)[:, :, :N].to(v.dtype), lambda: added().squeeze(2)
    states = _states(added(), log_decay.sum(-2), state)  # [B, H, n + 1, K, V]
    out = out + from_start.squeeze(-2) @ states[:, :, :-1]
    return out.flatten(2, 3)[:, :, :N].to(v.dtype), states[:, :, -1].clone


def gated_linear_attention_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrent form: q, k, log_decay [B, H, K], v [B, H, V], state [B, H, K, V] -> [B, H, V], new state."""
    wide = torch.promote_types(v.dtype, torch.float32)
    decay, k, q = log_decay.to(wide).exp(), k.to(wide), q.to(wide)
    S = decay.unsqueeze(-1) * state.to(wide) + k.unsqueeze(-1) * v.to(wide).unsqueeze(-2)
    return (q.unsqueeze(-2) @ S).squeeze(-2).to(v.dtype), stored(S, state.dtype)


def _states(added: Tensor, log_decay: Tensor, state: Tensor | None) -> Tensor:
    """The state before each of n chunks and after the last: [B, H, n, K, V], [B, H, n, K] -> [B, H, n + 1, K, V].

    Over chunks every key channel is a head of its own with one decay, the row of the state that it holds the value.
    """
    first = torch.zeros_like(added[:, :, 0]) if state is None else state.to(added.dtype)  # [B, H, K, V]
    rows, log_decay = added.transpose(2, 3).flatten(1, 2), log_decay.transpose(2, 3).flatten(1, 2)  # [B, H K, n, *]
    one = added.new_ones(added.shape[0], 1, added.shape[2], 1)
    # With one number a key there is nothing to multiply as matrices.
    after, _ = decay_linear_attention(one, one, rows, log_decay, first.flatten(1, 2).unsqueeze(2), backend="reference")
    after = after.unflatten(1, first.shape[1:3]).transpose(2, 3)
    return torch.cat([first.unsqueeze(2), after], dim=2)
