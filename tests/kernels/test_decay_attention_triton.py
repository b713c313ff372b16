"""The Triton kernels of linear attention with one decay a head against the reference in float64, on a GPU or interpreted."""

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.decay_attention import decay_linear_attention

CUDA = torch.cuda.is_available()
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("without a GPU, test_in_the_interpreter.py runs these in another process", allow_module_level=True)

DEVICE = "cuda" if CUDA else "cpu"
HALF = torch.bfloat16 if CUDA else torch.float16  # the interpreter multiplies the bits of bfloat16 as integers
TOLERANCE = {torch.float32: 1e-5, HALF: 1e-2}
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 4, 1, 64, 16, 64),
    (1, 2, 2, 65, 24, 20),
    (1, 4, 2, 150, 5, 100),
    (1, 2, 1, 200, 100, 33),
]
"""B, H, G, N, K, V: a chunk or less, and several; one block of values, and two."""
LARGE = [
    (256, 4, 1, 256, 16, 64),
    (256, 8, 1, 250, 24, 64),
    (256, 2, 1, 64, 8, 64),
    (1, 16, 16, 4097, 64, 128),
    (3, 8, 2, 1000, 128, 128),
    (3, 8, 4, 777, 128, 64),
    (5, 2, 2, 300, 64, 16),
]
NAMES = ("y", "state", "dq", "dk", "dv", "dlog_decay", "dstate")


def inputs(B, H, G, N, K, V, dtype=torch.float32, strongest=1.0):
    """q [B, G, N, K], k, v [B, H, N, V], log_decay [B, H, N] and a state, as parts and heads of projections."""
    generator = torch.Generator().manual_seed(N * K + V)
    joined = torch.randn(B, N, H * V + 2 * G * K, generator=generator).to(DEVICE, dtype)
    v, k, q = (
        t.unflatten(-1, (heads, -1)).transpose(1, 2)
        for t, heads in zip(joined.split([H * V, G * K, G * K], -1), (H, G, G), strict=True)
    )
    log_decay = -strongest * torch.rand(B, N, H, generator=generator).to(DEVICE).transpose(1, 2) ** 4
    state = torch.randn(B, H, K, V, generator=generator).to(DEVICE)
    return [t.detach().requires_grad_() for t in (q, k, v, log_decay, state)]


def results(attend, tensors):
    """Outputs, final state and the gradients of all that is given, by random gradients of both outputs."""
    y, state = attend(*tensors)
    final = state()
    generator = torch.Generator().manual_seed(0)
    dy, dfinal = (torch.randn(t.shape, generator=generator).to(t.device) for t in (y, final))
    loss = (y.to(dy.dtype) * dy).sum() + (final * dfinal).sum()
    return y, final, *torch.autograd.grad(loss, tensors)


def fused(*tensors):
    return decay_linear_attention(*tensors, backend="triton")


def reference(*tensors):
    return decay_linear_attention(*tensors, backend="reference")


def exactly(tensors):
    return results(reference, [t.detach().double().requires_grad_() for t in tensors])


def check(actual, expected, tolerance):
    for name, a, e in zip(NAMES, actual, expected, strict=False):
        distance = ((a.double() - e).norm() / e.norm().clamp_min(1e-2 * e.numel() ** 0.5)).item()
        assert distance < tolerance, f"{name} differs by {distance:.1e} of its norm"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("from_nothing", [False, True])
@pytest.mark.parametrize("shape", SHAPES + LARGE * CUDA, ids=str)
def test_is_the_reference(shape, from_nothing, dtype):
    tensors = inputs(*shape, dtype)[: 5 - from_nothing]
    actual = results(fused, tensors)
    check(actual, exactly(tensors), TOLERANCE[dtype])
    assert [t.dtype for t in actual[2:]] == [t.dtype for t in tensors]
    assert (actual[0].dtype, actual[1].dtype) == (dtype, torch.float32)
