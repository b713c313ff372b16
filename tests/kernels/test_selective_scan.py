"""The selective scan in chunks against one step after the other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.selective_scan import CHUNK, selective_scan, selective_scan_step


def inputs(batch, length, channels, width, steepest=1.0):
    torch.manual_seed(0)
    options = {"dtype": torch.float64, "requires_grad": True}
    x, y = torch.randn(2, batch, length, channels, dtype=torch.float64).unbind()
    dt = (steepest * torch.rand_like(y)).requires_grad_()
    A = (-10 * torch.rand(channels, width, dtype=torch.float64)).requires_grad_()
    B, C = (torch.randn(batch, length, width, **options) for _ in range(2))
    return x.requires_grad_(), dt, A, B, C, torch.randn(batch, channels, width, **options)


def one_by_one(x, dt, A, B, C, state):
    outputs = []
    for t in range(x.shape[1]):
        y, state = selective_scan_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, 1) if outputs else x, state


@settings(max_examples=20)
@given(
    batch=st.integers(1, 2),
    length=st.integers(0, 3 * CHUNK) | st.just(CHUNK * CHUNK + 5),
    channels=st.integers(1, 3),
    width=st.integers(1, 3),
    steepest=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_chunks_are_steps(batch, length, channels, width, steepest):
    args = inputs(batch, length, channels, width, steepest)
    for actual, expected in zip(selective_scan(*args), one_by_one(*args), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("length", [1, CHUNK, 3 * CHUNK - 5, CHUNK * CHUNK + 5])
@pytest.mark.parametrize("steepest", [1.0, 1e3])
def test_gradients_are_those_of_the_steps(length, steepest):
    args = inputs(2, length, 2, 3, steepest)

    def gradients(scan):
        y, state = scan(*args)
        return torch.autograd.grad(y.square().sum() + state.square().sum(), args)

    for actual, expected in zip(gradients(selective_scan), gradients(one_by_one), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_compiles_into_one_graph():
    args = inputs(2, 40, 2, 3)
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(*args), selective_scan(*args), strict=True):
        torch.testing.assert_close(actual, expected)
