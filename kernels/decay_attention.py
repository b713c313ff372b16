"""Linear attention whose state decays by one number a head and step: S_t = a_t S_{t-1} + k_t v_t^T, y_t = q_t S_t.

With q = C, k = B, v = dt x and log a = dt A it is the state space duality of Mamba-2 (Dao and Gu 2024,
arXiv 2405.21060, section 6); with a constant decay it is the retention of RetNet (Sun et al. 2023, arXiv 2307.08621).
Cost a token and head, chunks of C: C (K + V) multiply-adds inside the chunk, 2 K V across chunks. On a GPU decays and
scores never reach memory (`kernels/decay_attention_triton.py`).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import Backend, takes_triton
from kernels.decay_attention_triton import fused_decay_attention
from kernels.storage import stored

CHUNK = 64
"""Positions a chunk: near C (K + V) = 2 K V at K = V = 64."""


def decay_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    chunk: int = CHUNK,
    backend: Backend | None = None,
) -> tuple[Tensor, Callable[[], Tensor]]:
    """The parallel form: dense within a chunk, through the state across chunks.

    **Arguments:** `q`, `k` [B, G, N, K], each serving H / G heads; `v` [B, H, N, V]; `log_decay` log a_t <= 0,
    [B, H, N]; `state` [B, H, K, V], what came before; `chunk` >= 2, of the reference; `backend`: as `kernels.backend`
    says.
    **Returns** outputs [B, H, N, V] and a function that gives the state after all N tokens [B, H, K, V] (float32 or
    wider), which a caller that only wants the outputs never pays for.
    """
    kernel = "decay_attention_float32" if q.dtype == torch.float32 else "decay_attention"
    given = () if state is None else (state,)
    if takes_triton(kernel, backend, (q, k, v, log_decay), given, K=q.shape[-1], V=v.shape[-1]):
        y, final = fused_decay_attention(q, k, v, log_decay, state)

        def last() -> Tensor:
            """Who starts from nothing seldom asks for it, and then pays for it by a second pass."""
            if state is not None:
                return final
            nothing = v.new_zeros(*v.shape[:2], q.shape[-1], v.shape[-1], dtype=torch.float32)
            return fused_decay_attention(q, k, v, log_decay, nothing)[1]

        return y, last
    return _in_chunks(q, k, v, log_decay, state, chunk)


def _in_chunks(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None, chunk: int
) -> tuple[Tensor, Callable[[], Tensor]]:
    """The reference."""
    N, wide = v.shape[2], torch.promote_types(v.dtype, torch.float32)
    if N == 0:
        shape = (*v.shape[:2], q.shape[-1], v.shape[-1])
        return v, lambda: v.new_zeros(shape, dtype=wide) if state is None else state.to(wide)
    C, heads = min(chunk, N), (q.shape[1], -1)
    # R = H / G heads share a query and key; a padded position adds nothing and decays nothing.
    q, k = (F.pad(t, (0, 0, 0, -N % C)).unflatten(2, (-1, C)).unsqueeze(2) for t in (q, k))  # [B, G, 1, n, C, K]
    v = F.pad(v, (0, 0, 0, -N % C)).unflatten(2, (-1, C)).unflatten(1, heads)  # [B, G, R, n, C, V]
    log_decay = F.pad(log_decay.to(wide), (0, -N % C)).unflatten(2, (-1, C)).unflatten(1, heads)  # [B, G, R, n, C]
    decay = segment_sums(log_decay).exp()  # [B, G, R, n, C, C]
    out = (q @ k.transpose(-1, -2) * decay.to(v.dtype)) @ v

    def added() -> Tensor:
        """What each chunk adds to the state: [B, H, n, K, V]."""
        return (k.to(wide).transpose(-1, -2) @ (decay[..., -1, :, None] * v)).flatten(1, 2)

    total = log_decay.sum(-1).flatten(1, 2)  # [B, H, n]
    if total.shape[2] == 1 and state is None:
        return out.flatten(1, 2).flatten(2, 3), lambda: added().squeeze(2)
    states = _states(added(), total, state, chunk)  # [B, H, n + 1, K, V]
    before = states[:, :, :-1].unflatten(1, heads).to(q.dtype)
    out = out + q @ before * log_decay.cumsum(-1).exp().unsqueeze(-1).to(q.dtype)
    return out.flatten(1, 2).flatten(2, 3)[:, :, :N], states[:, :, -1].clone


def decay_linear_attention_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrent form: q, k [B, G, K], v [B, H, V], log_decay [B, H], state [B, H, K, V] -> [B, H, V], new state."""
    wide = torch.promote_types(v.dtype, torch.float32)
    q, k = (t.to(wide).repeat_interleave(v.shape[1] // t.shape[1], dim=1) for t in (q, k))  # [B, H, K]
    S = log_decay.to(wide).exp()[..., None, None] * state.to(wide) + k.unsqueeze(-1) * v.to(wide).unsqueeze(-2)
    return (q.unsqueeze(-2) @ S).squeeze(-2).to(v.dtype), stored(S, state.dtype)


def segment_sums(log_decay: Tensor) -> Tensor:
    """[..., C] -> [..., C, C] whose entry (i, j) is the sum over j < s <= i, and -inf where j > i.

    Not as differences of one running sum: a strong decay anywhere would leave those few digits.
    """
    C = log_decay.shape[-1]
    causal = torch.ones(C, C, dtype=torch.bool, device=log_decay.device).tril()
    terms = log_decay.unsqueeze(-1).expand(*log_decay.shape, C).masked_fill(~causal.tril(-1), 0)
    return terms.cumsum(-2).masked_fill(~causal, -torch.inf)


def _states(added: Tensor, log_decay: Tensor, state: Tensor | None, chunk: int) -> Tensor:
    """The state before each of n chunks and after the last: [B, H, n, K, V], [B, H, n] -> [B, H, n + 1, K, V].

    The recurrence over chunks is that over positions with q = k = 1 and a whole state as the value.
    """
    n, shape = added.shape[2], added.shape[3:]
    first = torch.zeros_like(added[:, :, :1]) if state is None else state.unsqueeze(2).to(added.dtype)
    if n == 1:
        after = log_decay.exp()[..., None, None] * first + added
    else:
        one = added.new_ones(added.shape[0], 1, n, 1)
        after, _ = _in_chunks(one, one, added.flatten(-2), log_decay, first.flatten(-2), chunk)
        after = after.unflatten(-1, shape)
    return torch.cat([first, after], dim=2)
