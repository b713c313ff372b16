"""Causal linear attention, y_t = phi(q_t) S_t with S_t = sum over s <= t of phi(k_s) v_s^T.

Source: Katharopoulos et al. 2020, arXiv 2006.16236; the chunked form as in Hua et al. 2022, arXiv 2202.10447.
Cost a token and head, chunks of C: C (K + V) multiply-adds inside the chunk, 2 F V across chunks.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.storage import stored


class LinearAttentionState(NamedTuple):
    """What is left of the past: sums over its tokens s of phi(k_s) v_s^T and, to normalise by, of phi(k_s)."""

    S: Tensor  # [B, H, F, V]
    z: Tensor  # [B, H, F], or [B, H, 0] where outputs are not normalised


CHUNK = 128
"""Positions a chunk: near C (K + V) = 2 F V for the second-order Taylor map at K = 16, V = 64."""


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    phi: Callable[[Tensor], Tensor],
    similarity: Callable[[Tensor, Tensor], Tensor],
    state: LinearAttentionState | None = None,
    *,
    sums: bool,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor | None, Callable[[], LinearAttentionState]]:
    """The parallel form: dense within a chunk, through the state across chunks.

    **Arguments:** `q`, `k` [B, H, N, K]; `v` [B, H, N, V]; `phi` [..., K] -> [..., F]; `similarity` the matrix of
    phi(q_i) . phi(k_j), [..., C, K] x [..., C, K] -> [..., C, C]; `sums`: of the similarities are wanted too,
    phi(q_t) z_t, by which outputs are normalised; `state`: what came before.
    **Returns** outputs [B, H, N, V]; the sums [B, H, N, 1] or None; and a function that gives the state after all N
    tokens (float32 or wider), which a caller that only wants the outputs never pays for.
    """
    N = q.shape[-2]
    # Up to two chunks the whole is dense: the states between would cost more than the products they save.
    dense = state is None and 2 * chunk >= N
    C = max(N if dense else min(chunk, N), 1)
    # A padded key is zeroed through its value, since phi(0) need not be 0.
    qc, kc, vc = (F.pad(t, (0, 0, 0, -N % C)).unflatten(-2, (-1, C)) for t in (q, k, v))  # [B, H, N/C, C, *]
    causal = torch.ones(C, C, dtype=torch.bool, device=q.device).tril()
    scores = similarity(qc, kc).masked_fill(~causal, 0)
    # Not as a product with a column of ones: a width of V + 1 leaves tensor cores their slowest path.
    out, total = scores @ vc, scores.sum(-1, keepdim=True) if sums else None
    if sums:
        vc = F.pad(vc, (0, 1), value=1.0)
        vc = vc if N % C == 0 else vc * (torch.arange(vc.shape[2] * C, device=v.device) < N).view(-1, C, 1)

    states = None
    if state is not None or N > C:
        states = _chunk_states(phi(kc), vc, state)  # [B, H, N/C + 1, F, V or V + 1]
        before = phi(qc) @ states[:, :, :-1].to(q.dtype)  # [B, H, N/C, C, V or V + 1]
        out = out + before[..., : v.shape[-1]]
        total = None if total is None else total + before[..., -1:]

    def final_state() -> LinearAttentionState:
        last = (_chunk_states(phi(kc), vc, state) if states is None else states)[:, :, -1]
        S, z = last.split([v.shape[-1], last.shape[-1] - v.shape[-1]], dim=-1)
        z = z.squeeze(-1) if sums else z[..., 0, :]
        return LinearAttentionState(S.clone(memory_format=torch.contiguous_format), z.clone())

    total = None if total is None else total.flatten(2, 3)[..., :N, :]
    return out.flatten(2, 3)[..., :N, :], total, final_state


def _chunk_states(phi_k: Tensor, v: Tensor, state: LinearAttentionState | None) -> Tensor:
    """The state before each chunk and after the last: [B, H, n, C, F], [B, H, n, C, V] -> [B, H, n + 1, F, V].

    Where values end in a one, z is the last column.
    """
    wide = torch.promote_types(v.dtype, torch.float32)
    sums = phi_k.transpose(-1, -2).to(wide) @ v.to(wide)
    if state is None:
        first = sums.new_zeros(*sums.shape[:2], 1, *sums.shape[3:])
    else:
        S, z = (t.to(wide) for t in state)
        first = (torch.cat([S, z.unsqueeze(-1)], dim=-1) if z.shape[-1] else S).unsqueeze(2)
    if sums.shape[2] == 0:  # no token at all: only the state that came in
        return first
    return torch.cat([first, sums], dim=2).cumsum(dim=2)


def linear_attention_step(
    phi_q: Tensor, phi_k: Tensor, v: Tensor, state: LinearAttentionState, *, sums: bool
) -> tuple[Tensor, Tensor | None, LinearAttentionState]:
    """The recurrent form: phi_q, phi_k [B, H, F], v [B, H, V] -> output [B, H, V], sum [B, H, 1] or None, new state."""
    wide = torch.promote_types(v.dtype, torch.float32)
    phi_q, phi_k = phi_q.to(wide), phi_k.to(wide)
    S, z = (t.to(wide) for t in state)
    S = S + phi_k.unsqueeze(-1) * v.to(wide).unsqueeze(-2)
    y = (phi_q.unsqueeze(-2) @ S).squeeze(-2).to(v.dtype)
    total = None
    if sums:
        z = z + phi_k
        total = (phi_q * z).sum(-1, keepdim=True).to(v.dtype)
    return y, total, LinearAttentionState(stored(S, state.S.dtype), z.to(state.z.dtype))
