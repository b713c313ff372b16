"""The Triton kernels of the short convolution against the reference in float64, on a GPU or in the interpreter."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.short_conv import short_conv, short_conv_step
from kernels.short_conv_triton import AHEAD, BACKWARD_CHANNELS, CHANNELS, POSITIONS, STRETCHES, stretch

CUDA = torch.cuda.is_available()
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("without a GPU, test_in_the_interpreter.py runs these in another process", allow_module_level=True)

DEVICE = "cuda" if CUDA else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + seed)).to(DEVICE, dtype)


def operands(B, N, D, k, biased, gated, dtype):
    """x, and its gate, are a part of one tensor, as mixers make them."""
    return {
        "x": random(B, N, 2 * D + 3, dtype=dtype)[..., : D + gated * D],
        "weight": random(D, 1, k, dtype=dtype),
        "bias": random(D, dtype=dtype) if biased else None,
        "past": random(B, k - 1, D, dtype=dtype),
    }


def exactly(given, **options):
    return short_conv(**{name: None if t is None else t.double() for name, t in given.items()}, **options)


def close(actual, expected, dtype, name=""):
    assert actual.dtype == dtype
    assert (actual.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm(), name


def gradients(convolve, given, by_y=True, by_after=True):
    """Of all that is given, as leaves of its own strides, by random gradients of the outputs and of the new past."""
    leaves = {name: t.detach().requires_grad_() for name, t in given.items() if t is not None}
    outputs = [t for t, asked in zip(convolve({**given, **leaves}), (by_y, by_after), strict=True) if asked]
    cotangents = [random(*t.shape, seed=1).to(t.dtype) for t in outputs]
    found = torch.autograd.grad(outputs, list(leaves.values()), cotangents, allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def check_gradients(given, dtype, by_y=True, by_after=True, **options):
    actual = gradients(lambda own: short_conv(**own, **options, backend="triton"), given, by_y, by_after)
    wide = {name: None if t is None else t.double() for name, t in given.items()}
    expected = gradients(lambda own: short_conv(**own, **options), wide, by_y, by_after)
    for name, gradient in actual.items():
        close(gradient, expected[name], dtype, name)
        assert gradient.is_contiguous()


@settings(max_examples=25, derandomize=True)
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
    given, options = operands(B, N, D, k, biased, gated, dtype), {"silu": silu, "gated": gated}
    expected, kept = exactly(given, **options)
    y, after = short_conv(**given, **options, backend="triton")
    close(y, expected, dtype)
    assert torch.equal(after.double(), kept)
    past, where = given["past"], given["past"].data_ptr()
    for t in range(min(N, 3)):
        rest = {"weight": given["weight"], "bias": given["bias"], **options}
        y, past = short_conv_step(given["x"][:, t], past=past, **rest, backend="triton")
        close(y, expected[:, t], dtype)
        assert past.data_ptr() == where
    inputs = torch.cat([random(B, k - 1, D, dtype=dtype), given["x"][..., :D]], 1)
    assert torch.equal(past, inputs[:, min(N, 3) : min(N, 3) + k - 1])


@settings(max_examples=25 if CUDA else 8, derandomize=True)
@given(
    B=st.integers(1, 2),
    N=st.integers(1, 20) | st.sampled_from([STRETCHES * stretch(1) + 1, STRETCHES * stretch(1000) + AHEAD]),
    D=st.sampled_from([1, 6, BACKWARD_CHANNELS + 2]),
    k=st.integers(2, 8),
    biased=st.booleans(),
    gated=st.booleans(),
    silu=st.booleans(),
    by=st.sampled_from([(True, True), (True, False), (False, True)]),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_gradients_are_those_of_the_reference(B, N, D, k, biased, gated, silu, by, dtype):
    check_gradients(operands(B, N, D, k, biased, gated, dtype), dtype, *by, silu=silu, gated=gated)


@pytest.mark.parametrize("gated", [False, True])
def test_without_a_past_it_is_zeros(gated):
    given = {**operands(2, 70, 6, 4, True, gated, torch.bfloat16), "past": None}
    y, after = short_conv(**given, silu=True, gated=gated, backend="triton")
    expected, kept = exactly(given, silu=True, gated=gated)
    close(y, expected, torch.bfloat16)
    assert torch.equal(after.double(), kept)
    check_gradients(given, torch.bfloat16, silu=True, gated=gated)


def test_gradients_are_in_the_dtypes_of_what_they_are_of():
    """As under autocast: weights in float32, and a past that is a state and has a dtype of its own."""
    given = operands(2, 9, 6, 4, True, True, torch.float32)
    given |= {"x": given["x"].bfloat16(), "past": given["past"].half()}
    found = gradients(lambda own: short_conv(**own, silu=True, gated=True, backend="triton"), given)
    assert {name: t.dtype for name, t in found.items()} == {name: t.dtype for name, t in given.items()}


def test_any_strides():
    given = operands(2, 19, 6, 4, True, True, torch.float32)
    turned = {name: t.mT.contiguous().mT if t.ndim == 3 else t.repeat_interleave(2)[::2] for name, t in given.items()}
    assert not any(t.is_contiguous() for name, t in turned.items() if name != "weight")
    check_gradients(turned, torch.float32, silu=True, gated=True)
    x = given["x"].detach().requires_grad_()
    y, _ = short_conv(x, given["weight"], None, None, gated=True, backend="triton")
    (dx,) = torch.autograd.grad(y.sum(), x)  # a gradient of no strides
    y, _ = short_conv(x, given["weight"], None, None, gated=True, backend="reference")
    torch.testing.assert_close(dx, torch.autograd.grad(y.sum(), x)[0])


def test_gradients_do_not_vary():
    B, N = (3, 70) if CUDA else (1, 5)  # an interpreter goes in order
    given = operands(B, N, 6, 4, True, True, torch.float32)
    once, again = (
        gradients(lambda own: short_conv(**own, silu=True, gated=True, backend="triton"), given) for _ in range(2)
    )
    assert all(torch.equal(once[name], again[name]) for name in given)


def test_members_are_convolutions_of_their_own():
    given = operands(2, 19, 6, 4, True, True, torch.float32)
    stacked = {name: torch.stack([t, 0.5 * t]) for name, t in given.items() if name != "past"} | {"past": given["past"]}
    dims = tuple(None if name == "past" else 0 for name in stacked)

    def together(backend):
        def one(*own):
            return short_conv(**dict(zip(stacked, own, strict=True)), silu=True, gated=True, backend=backend)

        return gradients(lambda own: torch.func.vmap(one, dims)(*own.values()), stacked)

    actual, expected = together("triton"), together("reference")
    for name in stacked:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("has_past", [False, True])
def test_compiles_into_one_graph(has_past):
    given = operands(2, 9, 6, 4, True, True, torch.float32)
    given["past"] = given["past"] if has_past else None

    def convolve(own):
        return short_conv(**own, silu=True, gated=True, backend="triton")

    compiled = torch.compile(convolve, fullgraph=True, backend="inductor" if CUDA else "aot_eager")
    actual, expected = gradients(compiled, given), gradients(convolve, given)
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient)


def test_operations_keep_the_rules_of_torch():
    given = operands(2, 9, 6, 4, True, True, torch.float32)
    x, weight, bias, past = (t.detach().requires_grad_() for t in given.values())
    for before in (past, None):
        arguments = (x, weight.unsqueeze(0), bias.unsqueeze(0), before, True, True)
        tests = ("test_schema", "test_faketensor", "test_autograd_registration")
        torch.library.opcheck(torch.ops.recallbench.short_conv.default, arguments, test_utils=tests)
        backward = (*(None if t is None else t.detach() for t in arguments[:4]), True, True)
        for dafter, wants_dpast in ((None, False), (random(2, 3, 6), before is not None)):
            arguments = (*backward, random(2, 9, 6), dafter, wants_dpast)
            operation = torch.ops.recallbench.short_conv_backward.default
            torch.library.opcheck(operation, arguments, test_utils=("test_schema", "test_faketensor"))


def test_nothing_is_kept_where_no_gradient_is_wanted():
    given = operands(2, 9, 6, 4, True, True, torch.float32)
    wanted = {**given, "weight": given["weight"].requires_grad_()}
    with torch.no_grad():
        y, _ = short_conv(**wanted, silu=True, gated=True, backend="triton")
    assert y.grad_fn is None
    assert torch.equal(y, short_conv(**wanted, silu=True, gated=True, backend="triton")[0])


@pytest.mark.skipif(not CUDA, reason="large")
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_large(dtype):
    given = operands(3, 16385, 4096, 3, False, True, dtype)
    expected, kept = exactly(given, silu=True, gated=True)
    y, after = short_conv(**given, silu=True, gated=True, backend="triton")
    close(y, expected, dtype)
    assert torch.equal(after.double(), kept)
    check_gradients(operands(256, 256, 288, 4, True, True, dtype), dtype, silu=True, gated=True)


def test_says_what_does_not_fit():
    given = operands(2, 3, 4, 3, False, False, torch.float32)
    wrong = [
        ({"past": given["past"][:, 1:]}, r"got past \[2, 1, 4\], and takes \[2, 2, 4\]"),
        ({"weight": random(4, 1, 9)}, "got k = 9, and its kernel takes k from 2 to 8"),
        ({"x": given["x"].double()}, r"got an input in torch\.float64"),
        ({"x": random(2, 3, 9), "gated": True}, r"got x \[2, 3, 9\], and takes \[2, 3, 8\]"),
    ]
    for changed, sentence in wrong:
        with pytest.raises(ValueError, match=sentence):
            short_conv(**{**given, **changed}, backend="triton")
