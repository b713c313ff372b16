"""A linear state space model with a diagonal complex transition: s_t = a s_{t-1} + b u_t, y_t = 2 Re(c . s_t) + d u_t.

Each of H channels has S / 2 complex states; the factor 2 Re stands for their conjugates.
Source: Gu et al. 2022, arXiv 2206.11893 (S4D), section 3. The parallel form is a convolution with the response to an
impulse; a state that came in adds its own decay to the outputs.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.long_conv import long_conv


def diagonal_ssm(
    u: Tensor, log_a: Tensor, b: Tensor, c: Tensor, d: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Callable[[], Tensor]]:
    """The parallel form, for any number of sequences that share a channel's parameters.

    **Arguments:** `u` [B, N, H, ...]; `log_a`, `b`, `c` complex [H, S/2], Re log_a < 0; `d` [H]; `state` complex
    [B, H, ..., S/2].
    **Returns** outputs [B, N, H, ...] and a function that gives the state after all N tokens.
    """
    N = u.shape[1]
    lag = torch.arange(N + 1, device=u.device, dtype=log_a.real.dtype)
    powers = torch.exp(log_a.unsqueeze(-1) * lag)  # a^0 .. a^N, [H, S/2, N + 1]
    response = 2 * torch.einsum("hs,hsn->nh", c * b, powers[..., :N]).real
    response = torch.cat([response[:1] + d, response[1:]])
    y = long_conv(u, response.view(N, u.shape[2], *(1,) * (u.ndim - 3)))
    if state is not None:
        state = state.to(powers.dtype)
        y = y + 2 * torch.einsum("hsn,bh...s->bnh...", c.unsqueeze(-1) * powers[..., 1:], state).real.to(u.dtype)

    def final_state() -> Tensor:
        new = torch.einsum("hsn,bnh...->bh...s", b.unsqueeze(-1) * powers[..., :N].flip(-1), u.to(powers.dtype))
        return new if state is None else new + torch.einsum("hs,bh...s->bh...s", powers[..., N], state)

    return y, final_state


def diagonal_ssm_step(
    u: Tensor, log_a: Tensor, b: Tensor, c: Tensor, d: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrent form: u [B, H, ...], state complex [B, H, ..., S/2] -> output [B, H, ...], new state."""
    state = state.to(log_a.dtype)
    over = (slice(None), *(None,) * (u.ndim - 2))  # [H, S/2] -> [H, 1 ..., S/2]
    s = torch.exp(log_a)[over] * state + b[over] * u.unsqueeze(-1)
    y = 2 * (c[over] * s).sum(-1).real + d.view(-1, *(1,) * (u.ndim - 2)) * u
    return y.to(u.dtype), s
