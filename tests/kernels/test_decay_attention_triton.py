"""Triton's linear attention with one decay a head against the reference in float64, on a GPU or in the interpreter."""

import os

import pytest
import torch

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
    (1, 4, 2, 150, 5, 70),
    (1, 2, 1, 200, 100, 33),
]
"""B, H, G, N, K, V: a chunk or less, and several; one block of values, and two."""
LARGE = [
    (256, 4, 1, 256, 16, 64),
    (256, 8, 1, 250, 24, 64),
    (256, 2, 1, 64, 8, 64),
    (1, 16, 16, 4097, 64, 128),
    (3, 8, 2, 1000, 128, 128),
    (3, 8, 4, 777, 40, 64),
    (5, 2, 2, 300, 64, 16),
]
NAMES = ("y", "state", "dq", "dk", "dv", "dlog_decay", "dstate")


def inputs(B, H, G, N, K, V, dtype=torch.float32):
    """q [B, G, N, K], k, v [B, H, N, V], log_decay [B, H, N] and a state, as parts and heads of projections."""
    generator = torch.Generator().manual_seed(N * K + V)
    joined = torch.randn(B, N, H * V + 2 * G * K, generator=generator).to(DEVICE, dtype)
    v, k, q = (
        t.unflatten(-1, (heads, -1)).transpose(1, 2)
        for t, heads in zip(joined.split([H * V, G * K, G * K], -1), (H, G, G), strict=True)
    )
    log_decay = -(torch.rand(B, N, H, generator=generator).to(DEVICE).transpose(1, 2) ** 4)
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
        distance = ((a.double() - e).norm() / e.norm().clamp_min(1)).item()
        assert distance < tolerance, f"{name} differs by {distance:.1e} of its norm"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("from_nothing", [False, True])
@pytest.mark.parametrize("shape", SHAPES + LARGE * CUDA, ids=str)
def test_is_the_reference(shape, from_nothing, dtype):
    if dtype == torch.float32 and shape[4] > 64:
        pytest.skip("the kernels take float32 up to K = 64")
    tensors = inputs(*shape, dtype)[: 5 - from_nothing]
    actual = results(fused, tensors)
    check(actual, exactly(tensors), TOLERANCE[dtype])
    assert [t.dtype for t in actual[2:]] == [t.dtype for t in tensors]
    assert (actual[0].dtype, actual[1].dtype) == (dtype, torch.float32)


@pytest.mark.parametrize("seed", range(12 if CUDA else 4))
def test_random_sizes(seed):
    generator = torch.Generator().manual_seed(seed)
    B, G, R, N, K, V = (int(torch.randint(1, most + 1, (), generator=generator)) for most in (2, 2, 3, 140, 64, 128))
    tensors = inputs(B, G * R, G, N, K, V)
    check(results(fused, tensors), exactly(tensors), 1e-5)


def test_outputs_and_final_state_have_gradients_of_their_own():
    tensors = inputs(2, 2, 1, 70, 8, 16)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    for which in (lambda y, state: y, lambda y, state: state()):
        actual, expected = (
            torch.autograd.grad(which(*attend(*leaves)).square().sum(), leaves[1:])
            for attend, leaves in ((fused, tensors), (reference, wide))
        )
        for a, e in zip(actual, expected, strict=True):
            assert (a - e).norm() < 1e-5 * e.norm()


def test_any_strides_and_one_gradient_for_all():
    """Elements apart, rates of heads that all positions share, and the gradient that a sum gives: one, expanded."""
    q, k, v, _, state = (t.detach() for t in inputs(2, 4, 2, 70, 16, 32))
    rates = torch.linspace(-1, -0.01, 4, device=DEVICE).requires_grad_()
    leaves = [t.mT.contiguous().mT.requires_grad_() for t in (q, k, v, state)]
    assert not any(t.is_contiguous() for t in leaves)

    def gradients(attend):
        q, k, v, state = leaves
        y, _ = attend(q, k, v, rates[:, None].expand(2, -1, 70), state)
        return y, *torch.autograd.grad(y.sum(), [*leaves, rates])

    for actual, expected in zip(gradients(fused), gradients(reference), strict=True):
        assert (actual - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("strong", [-20.0, -2e4, -torch.inf])
def test_a_strong_decay_leaves_the_digits_of_the_weak_ones(strong):
    tensors = inputs(1, 2, 1, 60, 8, 16)
    with torch.no_grad():
        tensors[3][:, :, 20::9] = strong
    check(results(fused, tensors), exactly(tensors), 1e-5)


def test_no_decay_and_nothing_but():
    tensors = inputs(1, 2, 1, 70, 8, 16)
    with torch.no_grad():
        tensors[3][:, 0] = 0
        tensors[3][:, 1] = -1e5
    check(results(fused, tensors), exactly(tensors), 1e-5)


@pytest.mark.parametrize("shape", [(2, 2, 1, 0, 4, 8), (0, 2, 1, 5, 4, 8)])
def test_nothing_to_attend_to(shape):
    *tensors, state = inputs(*shape)
    y, final = fused(*tensors, state)
    assert y.shape == tensors[2].shape
    torch.testing.assert_close(final(), state)


def test_outputs_are_the_same_without_gradients():
    tensors = inputs(2, 2, 1, 70, 8, 16)
    with torch.no_grad():
        y, final = fused(*tensors)
    with_gradients = fused(*tensors)
    assert torch.equal(y, with_gradients[0])
    assert torch.equal(final(), with_gradients[1]())


def test_gradients_do_not_vary():
    tensors = inputs(2, 4, 1, 70, 16, 100) if CUDA else inputs(1, 2, 1, 40, 16, 40)  # an interpreter goes in order
    for a, b in zip(results(fused, tensors), results(fused, tensors), strict=True):
        assert torch.equal(a, b)


def test_members_are_so_many_more_sequences():
    tensors = inputs(2, 2, 1, 40, 8, 16)
    stacked = [torch.stack([t.detach(), 0.5 * t.detach()]).requires_grad_() for t in tensors]
    shared = [*stacked[:3], tensors[3], stacked[4]]

    def members(attend):
        def each(*tensors):
            y, final = attend(*tensors)
            return y, final()

        def mapped(*tensors):
            y, final = torch.func.vmap(each, (0, 0, 0, None, 0))(*tensors)
            return y, lambda: final

        return mapped

    check(results(members(fused), shared), results(members(reference), shared), 1e-5)


@pytest.mark.parametrize("from_nothing", [False, True])
def test_compiles_into_one_graph(from_nothing):
    tensors = inputs(2, 2, 1, 70, 16, 32)[: 5 - from_nothing]
    compiled = torch.compile(
        lambda *t: fused(*t)[0], fullgraph=True, backend="inductor" if CUDA else "aot_eager", dynamic=False
    )

    def outputs(attend):
        y = attend(*tensors)
        return y, *torch.autograd.grad(y.square().sum(), tensors)

    check(outputs(compiled), outputs(lambda *t: fused(*t)[0]), 1e-6)


def test_operations_keep_the_rules_of_torch():
    *tensors, state = inputs(2, 4, 2, 20, 8, 16)
    for given, keep in ((None, False), (None, True), (state, True)):
        tests = ("test_schema", "test_faketensor") + ("test_autograd_registration",) * keep
        torch.library.opcheck(torch.ops.recallbench.decay_attention.default, (*tensors, given, keep), test_utils=tests)


@pytest.mark.skipif(not CUDA, reason="CUDA graphs are of a GPU")
def test_replays_as_a_graph():
    tensors = inputs(8, 4, 1, 150, 16, 64)

    def step():
        y, final = fused(*tensors)
        outputs = y, final()
        return *outputs, *torch.autograd.grad(outputs, tensors, [torch.ones_like(t) for t in outputs])

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
        expected = step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        replayed = step()
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(replayed, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(not CUDA, reason="the default on a GPU")
def test_is_the_default_on_a_gpu():
    tensors = inputs(2, 4, 1, 70, 16, 64)
    assert torch.equal(decay_linear_attention(*tensors)[0], fused(*tensors)[0])
    assert decay_linear_attention(*(t.double() for t in tensors))[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("place", "change", "says"),
    [
        (0, lambda q: q[0], r"takes q \[B, G, N, K\]"),
        (1, lambda k: k[:, :, 1:], r"got k \[2, 2, 4, 8\], and takes \[2, 2, 5, 8\]"),
        (2, lambda v: v.half(), r"got q in torch\.float32 and v in torch\.float16"),
        (3, lambda log_decay: log_decay[:, 1:], r"got log_decay \[2, 3, 5\], and takes \[2, 4, 5\]"),
        (3, lambda log_decay: log_decay.to("meta"), r"got q on (cpu|cuda:0) and log_decay on meta"),
        (4, lambda state: state.double(), r"got a state in torch\.float64"),
        (4, lambda state: state[..., 1:], r"got state \[2, 4, 8, 15\]"),
    ],
)
def test_says_what_does_not_fit(place, change, says):
    tensors = [t.detach() for t in inputs(2, 4, 2, 5, 8, 16)]
    tensors[place] = change(tensors[place])
    with pytest.raises(ValueError, match=says):
        fused(*tensors)


def test_heads_are_a_multiple_of_groups():
    q, k, v, log_decay, _ = inputs(2, 2, 2, 5, 8, 16)
    with pytest.raises(ValueError, match="got 1 heads of values, and takes a multiple of the 2 of keys"):
        fused(q, k, v[:, :1], log_decay[:, :1])
