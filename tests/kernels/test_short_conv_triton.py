"""The Triton kernels of the short convolution against the reference in float64, on a GPU or in the interpreter."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.short_conv import short_conv, short_conv_step
from kernels.short_conv_triton import CHANNELS, POSITIONS

CUDA = torch.cuda.is_available()
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("without a GPU, test_in_the_interpreter.py runs these in another process", allow_module_level=True)

DEVICE = "cuda" if CUDA else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def random(*shape, dtype):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


def operands(B, N, D, k, biased, gated, dtype):
    """x and its gate are halves of one tensor, as mixers make them."""
    x, gate = random(B, N, 2 * D, dtype=dtype).chunk(2, -1)
    return {
        "x": x,
        "weight": random(D, 1, k, dtype=dtype),
        "bias": random(D, dtype=dtype) if biased else None,
        "past": random(B, k - 1, D, dtype=dtype),
        "gate": gate if gated else None,
    }


def exactly(silu, **given):
    return short_conv(**{name: None if t is None else t.double() for name, t in given.items()}, silu=silu)


def close(actual, expected, dtype):
    assert actual.dtype == dtype
    assert (actual.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    B=st.integers(1, 2),
    N=st.integers(1, 5) | st.sampled_from([POSITIONS, 2 * POSITIONS + 1]),
    D=st.sampled_from([1, 6, CHANNELS + 2]),
    k=st.integers(2, 8),
    biased=st.booleans(),
    gated=st.booleans(),
    silu=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_is_the_reference(B, N, D, k, biased, gated, silu, dtype):
    given = operands(B, N, D, k, biased, gated, dtype)
    expected, kept = exactly(silu, **given)
    y, after = short_conv(**given, silu=silu, backend="triton")
    close(y, expected, dtype)
    assert torch.equal(after.double(), kept)
    past, where = given["past"], given["past"].data_ptr()
    for t in range(min(N, 3)):
        gate = None if given["gate"] is None else given["gate"][:, t]
        rest = {"weight": given["weight"], "bias": given["bias"], "gate": gate, "silu": silu}
        y, past = short_conv_step(given["x"][:, t], past=past, **rest, backend="triton")
        close(y, expected[:, t], dtype)
        assert past.data_ptr() == where
    inputs = torch.cat([random(B, k - 1, D, dtype=dtype), given["x"]], 1)
    assert torch.equal(past, inputs[:, min(N, 3) : min(N, 3) + k - 1])


@pytest.mark.skipif(not CUDA, reason="large")
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_large(dtype):
    given = operands(3, 16385, 4096, 3, False, True, dtype)
    expected, kept = exactly(True, **given)
    y, after = short_conv(**given, silu=True, backend="triton")
    close(y, expected, dtype)
    assert torch.equal(after.double(), kept)


def test_says_what_does_not_fit():
    given = operands(2, 3, 4, 3, False, False, torch.float32)
    wrong = [
        ({"past": given["past"][:, 1:]}, r"got past \[2, 1, 4\], and takes \[2, 2, 4\]"),
        ({"weight": random(4, 1, 9, dtype=torch.float32)}, "got k = 9, and its kernel takes k from 2 to 8"),
        ({"x": given["x"].double()}, r"got an input in torch\.float64"),
        ({"weight": given["weight"].clone().requires_grad_()}, "requires a gradient, and its kernel has none"),
    ]
    for changed, sentence in wrong:
        with pytest.raises(ValueError, match=sentence):
            short_conv(**{**given, **changed}, backend="triton")
