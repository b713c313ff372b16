"""A linear state space model with a diagonal complex transition: s_t = a s_{t-1} + b u_t, y_t = Re(c . s_t) + d u_t.

Each of H channels has S / 2 complex states; in c is a factor of 2 where their conjugates are states as well.
Source: Gu et al. 2022, arXiv 2206.11893 (S4D), section 3. In parallel form a chunk is a convolution with the response
to an impulse; from chunk to chunk goes the state, written by a product, and read by one that adds its decay to outputs.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.long_conv import convolve

CHUNK = 256
"""Positions C a chunk."""


class Complex(NamedTuple):
    """Complex numbers as two real tensors of one shape, since torch.compile generates no code for a complex one."""

    real: Tensor
    imag: Tensor


def times(x: Complex, y: Complex) -> Complex:
    """Their product, element by element."""
    return Complex(x.real * y.real - x.imag * y.imag, x.real * y.imag + x.imag * y.real)


def power(log_a: Complex, n: Tensor | int) -> Complex:
    """a^n for real n, as many as broadcast."""
    size, angle = (log_a.real * n).exp(), log_a.imag * n
    return Complex(size * angle.cos(), size * angle.sin())


def diagonal_ssm(
    u: Tensor, log_a: Complex, b: Complex, c: Complex, d: Tensor, state: Tensor | None = None, chunk: int = CHUNK
) -> tuple[Tensor, Callable[[], Tensor]]:
    """The parallel form, for any number of sequences that share a channel's parameters.

    **Arguments:** `u` [H, ..., B, N]; `log_a`, `b`, `c` [H, S/2], Re log_a < 0; `d` [H]; `state` as real pairs
    [B, H, ..., S/2, 2].
    **Returns** outputs [H, ..., B, N] and a function that gives the state after all N tokens.
    """
    N, C, wide = u.shape[-1], min(chunk, max(u.shape[-1], 1)), log_a.real.dtype
    n = max(1, -(-N // C))
    log_a, b, c = (Complex(*(part.unsqueeze(-1) for part in z)) for z in (log_a, b, c))  # [H, S/2, 1]
    lag = torch.arange(C, device=u.device, dtype=wide)
    response = times(times(c, b), power(log_a, lag)).real.sum(1) + F.pad(d.unsqueeze(-1), (0, C - 1))  # [H, C]
    chunks = F.pad(u, (0, n * C - N)).unflatten(-1, (n, C))  # [H, ..., B, n, C]
    y = convolve(chunks, response)

    before = Complex(*state.to(wide).movedim(0, -3).flatten(1, -3).unbind(-1)) if state is not None else None
    if n > 1 or before is not None:
        written = torch.cat(times(b, power(log_a, lag.flip(0))), 1).mT  # [H, C, S]
        entered = (chunks.flatten(1, -2) @ written.to(u.dtype)).to(wide).unflatten(1, (-1, n))  # [H, sequences, n, S]
        before = before or Complex(*2 * [entered.new_zeros(*entered.shape[:2], entered.shape[-1] // 2)])
        whole = Complex(*(part.mT for part in power(log_a, C)))  # [H, 1, S/2]
        states = [torch.cat(before, -1)]
        for real, imag in (part.chunk(2, -1) for part in entered[:, :, :-1].unbind(2)):
            kept = times(whole, before)
            before = Complex(kept.real + real, kept.imag + imag)
            states.append(torch.cat(before, -1))
        read = times(c, power(log_a, lag + 1))
        read = torch.cat([read.real, -read.imag], 1)  # Re(c a^(t + 1) s), [H, S, C]
        y = y + (torch.stack(states, 2).to(u.dtype).flatten(1, 2) @ read.to(u.dtype)).view(y.shape)

    def final_state() -> Tensor:
        rest = N - (n - 1) * C
        written = torch.cat(times(b, power(log_a, lag[:rest].flip(0))), 1).mT
        entered = Complex(*(u[..., N - rest :].flatten(1, -2).to(wide) @ written).chunk(2, -1))  # [H, sequences, S/2]
        if before is not None:
            kept = times(Complex(*(part.mT for part in power(log_a, rest))), before)
            entered = Complex(kept.real + entered.real, kept.imag + entered.imag)
        return torch.stack(entered, -1).unflatten(1, u.shape[1:-1]).movedim(-3, 0)

    return y.flatten(-2)[..., :N], final_state


def diagonal_ssm_step(
    u: Tensor, log_a: Complex, b: Complex, c: Complex, d: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrent form: u [B, H, ...], state as real pairs [B, H, ..., S/2, 2] -> output [B, H, ...], new state."""
    between = (1,) * (u.ndim - 2)
    a, b, c = (
        Complex(*(part.view(len(d), *between, -1) for part in z))  # [H, 1 ..., S/2]
        for z in (power(log_a, 1), b, c)
    )
    kept, u_s = times(a, Complex(*state.to(a.real.dtype).unbind(-1))), u.unsqueeze(-1)
    s = Complex(kept.real + b.real * u_s, kept.imag + b.imag * u_s)
    y = times(c, s).real.sum(-1) + d.view(-1, *between) * u
    return y.to(u.dtype), torch.stack(s, dim=-1)
