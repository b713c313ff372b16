"""Causal convolution with a filter as long as the sequence: y_t = sum over s <= t of h_{t - s} u_s.

The parallel form goes through the Fourier transform, in O(N log N): zeros up to twice the length keep the circle from
closing. Its rounding error is relative to the largest output of the sequence, not to each.
"""

import torch
from torch import Tensor


def long_conv(u: Tensor, h: Tensor) -> Tensor:
    """The parallel form: inputs `u` [B, N, ...], filter `h` [L, ...], zero beyond its L lags -> outputs [B, N, ...].

    The trailing dimensions of `h` broadcast against those of `u`.
    """
    N = u.shape[1]
    if N == 0:
        return u
    wide = torch.promote_types(u.dtype, torch.float32)
    U, H = (
        torch.view_as_real(torch.fft.rfft(t.to(wide), n=2 * N, dim=dim)).unbind(-1) for t, dim in ((u, 1), (h[:N], 0))
    )
    # The product of the spectra in real numbers, since torch.compile generates no code for complex ones.
    product = torch.stack([U[0] * H[0] - U[1] * H[1], U[0] * H[1] + U[1] * H[0]], dim=-1)
    return torch.fft.irfft(torch.view_as_complex(product), n=2 * N, dim=1)[:, :N].to(u.dtype)


def long_conv_step(u: Tensor, h: Tensor) -> Tensor:
    """The recurrent form, the last output alone: the P inputs so far `u` [B, P, D], `h` [L >= P, D] -> [B, D]."""
    wide = torch.promote_types(u.dtype, torch.float32)
    return torch.einsum("bpd,pd->bd", u.to(wide), h[: u.shape[1]].flip(0).to(wide)).to(u.dtype)
