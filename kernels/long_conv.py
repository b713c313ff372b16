"""Causal convolution with a filter as long as the sequence: y_t = sum over s <= t of h_{t - s} u_s.

The parallel form goes through the Fourier transform, in O(N log N): zeros up to twice the length keep the circle from
closing. Its rounding error is relative to the largest output of the sequence, not to each. On a GPU a short sequence
is a product with the Toeplitz matrix of the filter instead: N^2 operations a channel, on the units made for them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

DENSE = 1024
"""Up to this N a GPU multiplies by the matrix of the filter, [channels, N, N]."""


def long_conv(u: Tensor, h: Tensor) -> Tensor:
    """The parallel form: inputs `u` [B, N, C, ...], filter `h` [L, C, 1 ...], zero beyond its L lags.

    C channels have a filter each, which what follows them shares. **Returns** outputs of the shape of `u`.
    """
    N = u.shape[1]
    if N == 0:
        return u
    if u.is_cuda and N <= DENSE:
        return _by_matrix(u, h)
    wide = torch.promote_types(u.dtype, torch.float32)
    U, H = (
        torch.view_as_real(torch.fft.rfft(t.to(wide), n=2 * N, dim=dim)).unbind(-1) for t, dim in ((u, 1), (h[:N], 0))
    )
    # The product of the spectra in real numbers, since torch.compile generates no code for complex ones.
    product = torch.stack([U[0] * H[0] - U[1] * H[1], U[0] * H[1] + U[1] * H[0]], dim=-1)
    return torch.fft.irfft(torch.view_as_complex(product), n=2 * N, dim=1)[:, :N].to(u.dtype)


def _by_matrix(u: Tensor, h: Tensor) -> Tensor:
    """y_c = T_c u_c with T_c[t, s] = h_c[t - s]."""
    N, L = u.shape[1], min(len(h), u.shape[1])
    lags = F.pad(h[:L].flatten(1).T, (N - 1, N - L))  # [C, 2 N - 1], lag 0 at N - 1
    T = lags.unfold(-1, N, 1).flip(-1).to(u.dtype)  # [C, N, N]
    columns = u.flatten(3) if u.ndim > 3 else u.unsqueeze(3)  # [B, N, C, n]
    y = T @ columns.permute(2, 1, 0, 3).flatten(2)  # [C, N, B n]
    return y.unflatten(2, (len(u), -1)).permute(2, 1, 0, 3).reshape(u.shape).to(u.dtype)


def long_conv_step(u: Tensor, h: Tensor) -> Tensor:
    """The recurrent form, the last output alone: the P inputs so far `u` [B, P, D], `h` [L >= P, D] -> [B, D]."""
    wide = torch.promote_types(u.dtype, torch.float32)
    return torch.einsum("bpd,pd->bd", u.to(wide), h[: u.shape[1]].flip(0).to(wide)).to(u.dtype)
