"""The generalised delta rule of RWKV-7: every key channel decays at its own rate, and any direction may be replaced.

    S_t = diag(w_t) S_{t-1} + b_t (a_t S_{t-1}) + k_t v_t^T,   y_t = r_t S_t

For a unit vector p and rates e in [0, 1], a = -p and b = e * p erase a part of what is held along p; v is written at k.
With u_t = a_t S_{t-1} the first equation is S_t = diag(w_t) S_{t-1} + b_t u_t^T + k_t v_t^T. In a chunk these u solve a
unit triangular system and are affine in the state S before the chunk: u = U + W S.
Source: Peng et al. 2025, arXiv 2503.14456, section 4, with the transpose of its state.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import recurrences_of_fla
from kernels.backend import Backend
from kernels.channel_decay import decayed_products
from kernels.chunk_states import chunk_states
from kernels.recurrences_of_fla import takes_fla
from kernels.storage import stored
from kernels.unit_triangular import unit_triangular_solve

CHUNK = 32
"""Positions a chunk, a power of two: longer ones cost more in the solve, shorter ones more in the K x K maps."""


def diagonal_delta_rule(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor,
    chunk: int = CHUNK,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """The parallel form: a triangular solve within a chunk, an affine map of the state from chunk to chunk.

    **Arguments:** `r`, `k`, `a`, `b` and `log_w` <= 0, [B, H, N, K]; `v` [B, H, N, V]; `state` [B, H, K, V]; `chunk`
    of the reference, a power of two; `backend`: as `kernels.backend` says.
    **Returns** outputs [B, H, N, V] and the state after all N tokens [B, H, K, V] (float32 or wider).
    """
    if takes_fla(backend, v):
        return recurrences_of_fla.diagonal_delta_rule(r, log_w, k, v, a, b, state)
    N, narrow, wide = v.shape[2], v.dtype, torch.promote_types(v.dtype, torch.float32)
    if N == 0:
        return v, state.to(wide)
    C = min(chunk, 1 << (N - 1).bit_length())
    # A padded position has w = 1 and a = b = k = 0: it changes nothing.
    r, log_w, k, v, a, b = (
        F.pad(t.to(wide), (0, 0, 0, -N % C)).unflatten(2, (-1, C)) for t in (r, log_w, k, v, a, b)
    )  # [B, H, n, C, *]
    w = log_w.exp()

    # r_t reads the state after its own step and so its own k and b, a_t the one before.
    keys = torch.stack([k, b], dim=-2)  # [B, H, n, C, 2, K]
    own = torch.stack([keys @ r.unsqueeze(-1), torch.zeros_like(keys[..., :1])], dim=-3).squeeze(-1)
    products, queries, keys = decayed_products(torch.stack([w * r, a], dim=-2), keys, w, own)
    (rk, rb), (ak, ab) = (half.unbind(-1) for half in products.unbind(-3))  # [B, H, n, C, C], reader - source
    r, a = queries.unbind(-2)  # decayed since the start of the chunk
    k, b = keys.transpose(-3, -1).unbind(-2)  # decayed to its end, [B, H, n, K, C]

    # (I - ab) u = ak v + a S
    UW = unit_triangular_solve(-ab, torch.cat([ak @ v, a], dim=-1), backend)
    U, W = UW.split([v.shape[-1], a.shape[-1]], dim=-1)
    kept = torch.diag_embed(log_w.sum(-2).exp())
    states = chunk_states(kept + b @ W, b @ U + k @ v, state.to(wide))
    out = rk @ v + rb @ U + (r + rb @ W) @ states[:, :, :-1]
    return out.flatten(2, 3)[:, :, :N].to(narrow), states[:, :, -1].clone()


def diagonal_delta_rule_step(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrent form: r, k, a, b, log_w [B, H, K], v [B, H, V], state [B, H, K, V] -> [B, H, V], new state."""
    wide = torch.promote_types(v.dtype, torch.float32)
    r, log_w, k, v_, a, b = (t.to(wide).unsqueeze(-2) for t in (r, log_w, k, v, a, b))
    S = state.to(wide)
    S = log_w.exp().transpose(-1, -2) * S + b.transpose(-1, -2) * (a @ S) + k.transpose(-1, -2) * v_
    return (r @ S).squeeze(-2).to(v.dtype), stored(S, state.dtype)
