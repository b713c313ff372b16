"""Causal convolution with a filter as long as the sequence: y_t = sum over s <= t of h_{t - s} u_s.

The parallel form goes through the Fourier transform, in O(N log N): zeros up to twice the length keep the circle from
closing. Its rounding error is relative to the largest output of the sequence, not to each. On a GPU a short sequence
is a product with the Toeplitz matrix of the filter instead: N^2 operations a channel, on the units made for them. Where
the filter is short, of L lags, so is each block of a long sequence with the L - 1 inputs before it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

DENSE = 1024
"""Up to this N a GPU multiplies by the matrix of the filter, [channels, N, N]."""


def long_conv(u: Tensor, h: Tensor) -> Tensor:
    """The parallel form: inputs `u` [B, N, C], filter `h` [L, C], zero beyond its L lags -> outputs [B, N, C]."""
    # A copy of its own, which a compiler joins with its neighbours: the one within a matrix product is slow.
    return convolve(u.permute(2, 0, 1).contiguous(), h.T).permute(1, 2, 0)


def convolve(u: Tensor, h: Tensor) -> Tensor:
    """The same with time last: inputs `u` [C, ..., N], filter `h` [C, L] -> outputs [C, ..., N].

    C channels have a filter each, which all of its sequences share.
    """
    N = u.shape[-1]
    if N == 0:
        return u
    if u.is_cuda and N <= DENSE:
        return _by_matrix(u, h)
    if u.is_cuda and 2 * h.shape[1] <= DENSE:
        return _in_blocks(u, h)
    wide = torch.promote_types(u.dtype, torch.float32)
    U, H = (torch.view_as_real(torch.fft.rfft(t.to(wide), n=2 * N)).unbind(-1) for t in (u, h[:, :N]))
    H = [t.view(len(h), *(1,) * (u.ndim - 2), -1) for t in H]
    # The product of the spectra in real numbers, since torch.compile generates no code for complex ones.
    product = torch.stack([U[0] * H[0] - U[1] * H[1], U[0] * H[1] + U[1] * H[0]], dim=-1)
    return torch.fft.irfft(torch.view_as_complex(product), n=2 * N)[..., :N].to(u.dtype)


def _by_matrix(u: Tensor, h: Tensor) -> Tensor:
    """y_c = u_c T_c with a row of u_c for each sequence."""
    T = toeplitz(h, u.shape[-1]).to(u.dtype)
    return (u.flatten(1, -2) @ T).view(u.shape).to(u.dtype)


def _in_blocks(u: Tensor, h: Tensor) -> Tensor:
    """As many outputs at once as the filter has lags L, each block from its own 2 L - 1 inputs."""
    L, N = h.shape[1], u.shape[-1]
    T = toeplitz(h, 2 * L - 1)[..., L - 1 :].to(u.dtype)  # [C, 2 L - 1, L]
    blocks = F.pad(u, (L - 1, -N % L)).unfold(-1, 2 * L - 1, L)  # [C, ..., n, 2 L - 1]
    y = blocks.flatten(1, -2) @ T
    return y.view(*u.shape[:-1], -1)[..., :N].to(u.dtype)


def toeplitz(h: Tensor, N: int) -> Tensor:
    """[C, L] -> T [C, N, N] with T[s, t] = h[t - s] from the diagonal on, and 0 beyond the L lags.

    Rows of N + 1 that all hold h, read as if they were of N: each begins one lag before the one above it, and what
    comes around is below the diagonal. The gradient of this is a sum over rows, where that of an index would scatter.
    """
    h = h[:, :N]
    rows = F.pad(h, (0, N + 1 - h.shape[1])).unsqueeze(1).expand(-1, N, -1)  # [C, N, N + 1]
    return rows.flatten(1)[:, :-N].unflatten(1, (N, N)).triu()


def long_conv_step(u: Tensor, h: Tensor) -> Tensor:
    """The recurrent form, the last output alone: the P inputs so far `u` [B, P, D], `h` [L >= P, D] -> [B, D]."""
    wide = torch.promote_types(u.dtype, torch.float32)
    return torch.einsum("bpd,pd->bd", u.to(wide), h[: u.shape[1]].flip(0).to(wide)).to(u.dtype)
