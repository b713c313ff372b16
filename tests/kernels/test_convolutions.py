"""Every way to compute a convolution, on whatever device there is, against its sum in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.long_conv import _by_matrix, _in_blocks, convolve, long_conv, long_conv_step
from kernels.short_conv import MAX_SHIFTS, short_conv, short_conv_step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(DEVICE)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=40, derandomize=True)
@given(N=st.integers(0, 20), L=st.integers(1, 30), n=st.sampled_from([(), (1,), (2, 3)]))
def test_long_convolution(N, L, n):
    u, h = random(5, *n, 2, N), random(5, L)
    expected = torch.zeros_like(u)
    for t in range(N):
        for s in range(max(0, t - L + 1), t + 1):
            expected[..., t] += h[:, t - s].view(5, *(1 for _ in n), 1) * u[..., s]
    close(convolve(u, h), expected)
    if N:
        close(_by_matrix(u, h), expected)
        close(_in_blocks(u, h), expected)
    if not n:
        u, h, expected = u.permute(1, 2, 0), h.T, expected.permute(1, 2, 0)
        close(long_conv(u, h), expected)
        if 0 < N <= L:
            close(long_conv_step(u, h), expected[:, -1])


@pytest.mark.parametrize("L", [3, 6, 9])
@pytest.mark.parametrize("convolution", [convolve, _by_matrix, _in_blocks])
def test_gradients_of_the_long_convolution(convolution, L):
    u, h = random(2, 3, 2, 6).requires_grad_(), random(2, L).requires_grad_()
    assert torch.autograd.gradcheck(convolution, (u, h))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4, MAX_SHIFTS, MAX_SHIFTS + 1, 30])
def test_short_convolution(k, biased):
    N, D = 12, 6
    x, weight, past = random(3, N, D), random(D, 1, k), random(3, k - 1, D)
    bias = random(D) if biased else None
    inputs = torch.cat([past, x], 1)
    expected = torch.stack([(inputs[:, t : t + k] * weight[:, 0].T).sum(1) for t in range(N)], 1)
    expected = expected if bias is None else expected + bias
    y, after = short_conv(x, weight, bias, past)
    close(y, expected)
    close(after, inputs[:, N:])
    for t in range(N):
        y, past = short_conv_step(x[:, t], weight, bias, past)
        close(y, expected[:, t])
    close(past, after)
