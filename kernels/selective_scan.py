"""The selective scan of Mamba: h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t, y_t = C_t . h_t, in every channel alone.

Source: Gu and Dao 2023, arXiv 2312.00752, equation 2a, with the decay of equation 4 and, as in its reference, dt B for
the input. Every channel and state element decays at its own rate, so nothing here is a matrix product over positions.
The parallel form cuts the sequence into chunks of C and takes the C steps of all chunks at once: one time from zero,
which gives what each chunk adds, and a second time from the state that enters each chunk. Decays are multiplied and
never divided by, so that none can overflow. Work is 2 N steps, and the backward pass keeps the size of 3 N states.
"""

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import Backend, takes_triton
from kernels.selective_scan_step_triton import fused_selective_scan_step
from kernels.selective_scan_triton import fused_selective_scan
from kernels.storage import stored

CHUNK = 16
"""Steps taken one after the other, for any N; larger chunks save no time and make a longer graph to compile."""


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """The parallel form. B and C are the paper's, so the batch is written as a dot here.

    **Arguments:** `x`, `dt` [., N, E] of E channels, dt >= 0; `A` [E, S] < 0; `B`, `C` [., N, S]; `state` [., E, S];
    `backend`: as `kernels.backend` says.
    **Returns** outputs [., N, E] in the dtype of `x`, and the state after all N tokens, in float32 or wider.
    """
    tensors = x, dt, A, B, C, state
    if takes_triton("selective_scan", backend, tensors[:5], (state,), S=A.shape[-1]):
        return fused_selective_scan(*tensors)
    return _in_chunks(*tensors)


def selective_scan_step(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, backend: Backend | None = None
) -> tuple[Tensor, Tensor]:
    """The recurrent form: x, dt [., E], B, C [., S], state [., E, S] -> output [., E], new state in its own dtype.

    Triton writes the new state in the place of the old one.
    """
    if takes_triton("selective_scan_step", backend, (x, dt, A, B, C), (state,), S=A.shape[-1]):
        return fused_selective_scan_step(x, dt, A, B, C, state), state
    wide = torch.promote_types(x.dtype, torch.float32)
    dt, B, C = dt.to(wide), B.to(wide), C.to(wide)
    h = torch.exp(dt.unsqueeze(-1) * A) * state.to(wide) + (dt * x).unsqueeze(-1) * B.unsqueeze(-2)
    return (h @ C.unsqueeze(-1)).squeeze(-1).to(x.dtype), stored(h, state.dtype)


def _in_chunks(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The reference."""
    wide = torch.promote_types(x.dtype, torch.float32)
    h, N = state.to(wide), x.shape[1]
    if N == 0:
        return x, h
    length = min(CHUNK, N)
    dt, u, B, C = (_chunks(t.to(wide), length) for t in (dt, dt.to(wide) * x, B, C))  # [C, ., n, E or S]
    decay = [torch.exp(step.unsqueeze(-1) * A) for step in dt.unbind()]  # C times [., n, E, S]
    update = [a.unsqueeze(-1) * b.unsqueeze(-2) for a, b in zip(u.unbind(), B.unbind(), strict=True)]

    states = _scan(decay, update, torch.exp(dt.sum(0).unsqueeze(-1) * A), h)
    y = [(h @ c.unsqueeze(-1)).squeeze(-1) for h, c in zip(states, C.unbind(), strict=True)]  # C times [., n, E]
    return torch.stack(y, dim=2).flatten(1, 2)[:, :N].to(x.dtype), states[-1][:, -1].clone()


def _chunks(t: Tensor, length: int, value: float = 0.0) -> Tensor:
    """[., N, ...] -> [C, ., n, ...], position i of every chunk together; dt = 0 in the padding keeps the state."""
    pad = (0, 0) * (t.ndim - 2) + (0, -t.shape[1] % length)
    return F.pad(t, pad, value=value).unflatten(1, (-1, length)).movedim(2, 0)


def _scan(decay: Sequence[Tensor], update: Sequence[Tensor], total: Tensor, state: Tensor) -> list[Tensor]:
    """h = decay h + update in n chunks at once: the states [., n, E, S] after each of the C positions.

    `total` [., n, E, S] is the decay over each whole chunk, `state` [., E, S] enters the first.
    """
    h = state.unsqueeze(1)
    if total.shape[1] > 1:
        added = update[0]
        for a, b in zip(decay[1:], update[1:], strict=True):
            added = torch.addcmul(b, a, added)
        h = torch.cat([h, _after(total, added, state)[:, :-1]], dim=1)
    states = []
    for a, b in zip(decay, update, strict=True):
        h = torch.addcmul(b, a, h)
        states.append(h)
    return states


def _after(decay: Tensor, update: Tensor, state: Tensor) -> Tensor:
    """The same recurrence over a sequence of n chunks, again in chunks: states [., n, E, S] after each."""
    n = decay.shape[1]
    length = min(CHUNK, n)
    decays, updates = _chunks(decay, length, value=1.0).unbind(), _chunks(update, length).unbind()
    states = _scan(decays, updates, reduce(torch.mul, decays), state)
    return torch.stack(states, dim=2).flatten(1, 2)[:, :n]
