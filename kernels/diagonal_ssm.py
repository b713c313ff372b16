"""A linear state space model with a diagonal complex transition: s_t = a s_{t-1} + b u_t, y_t = Re(c . s_t) + d u_t.

Each of H channels has S / 2 complex states; in c is a factor of 2 where their conjugates are states as well.
Source: Gu et al. 2022, arXiv 2206.11893 (S4D), section 3. The parallel form is a convolution with the response to an
impulse; a state that came in adds its own decay to the outputs.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.long_conv import convolve


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
    u: Tensor, log_a: Complex, b: Complex, c: Complex, d: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Callable[[], Tensor]]:
    """The parallel form, for any number of sequences that share a channel's parameters.

    **Arguments:** `u` [H, ..., B, N]; `log_a`, `b`, `c` [H, S/2], Re log_a < 0; `d` [H]; `state` as real pairs
    [B, H, ..., S/2, 2].
    **Returns** outputs [H, ..., B, N] and a function that gives the state after all N tokens.
    """
    N = u.shape[-1]
    log_a, b, c = (Complex(*(part.unsqueeze(-1) for part in z)) for z in (log_a, b, c))  # [H, S/2, 1]
    lag = torch.arange(N, device=u.device, dtype=log_a.real.dtype)
    response = times(times(c, b), power(log_a, lag)).real.sum(1)  # [H, N]
    y = convolve(u, response + F.pad(d.unsqueeze(-1), (0, N - 1)))
    if state is not None:
        s = torch.view_as_complex(state.to(lag.dtype))
        decay = torch.complex(*times(c, power(log_a, lag + 1)))
        y = y + torch.einsum("hsn,bh...s->h...bn", decay, s).real.to(u.dtype)

    def final_state() -> Tensor:
        entered = torch.complex(*times(b, power(log_a, lag.flip(0))))
        new = torch.einsum("hsn,h...bn->bh...s", entered, u.to(entered.dtype))
        if state is not None:
            left = torch.complex(*power(log_a, N)).squeeze(-1)
            new = new + torch.einsum("hs,bh...s->bh...s", left, torch.view_as_complex(state.to(lag.dtype)))
        return torch.view_as_real(new)

    return y, final_state


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
