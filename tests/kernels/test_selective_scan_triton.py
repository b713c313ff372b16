"""The Triton kernels of the selective scan against the reference in float64, on a GPU or in Triton's interpreter."""

import os

import pytest
import torch

from kernels.selective_scan import selective_scan, selective_scan_step
from kernels.selective_scan_triton import SHORTEST, blocks, segments

CUDA = torch.cuda.is_available()
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("without a GPU, test_in_the_interpreter.py runs these in another process", allow_module_level=True)

DEVICE = "cuda" if CUDA else "cpu"
NAMES = ("y", "state", "dx", "ddt", "dA", "dB", "dC", "dstate")
T = blocks(16).tile
SHAPES = [(1, 1, 1, 1), (1, T, 40, 8), (2, T + 3, 17, 24), (1, 2 * T + 3, 65, 16), (2, 5, 128, 5)]
LARGE = [
    (1, 70, 65, 16),
    (256, 256, 256, 16),
    (256, 250, 128, 24),
    (64, 1024, 200, 8),
    (5, 1000, 512, 24),
    (2, 3, 96, 64),
]


def inputs(b, N, E, S, dtype=torch.float32, device=DEVICE):
    """x [b, N, E], dt, A [E, S], B, C [b, N, S] and state [b, E, S]; B and C are halves of one tensor."""
    generator = torch.Generator().manual_seed(N * E + S)
    x, dt = torch.randn(b, N, E, generator=generator), 0.2 * torch.rand(b, N, E, generator=generator).exp()
    A, state = -S * torch.rand(E, S, generator=generator), torch.randn(b, E, S, generator=generator)
    BC = torch.randn(b, N, 2 * S, generator=generator)
    x, BC = x.to(device, dtype), BC.to(device, dtype)
    return [t.requires_grad_() for t in (x, dt.to(device), A.to(device), *BC.chunk(2, -1), state.to(device))]


def results(scan, tensors):
    """Outputs, final state and the gradients of all six, by random gradients of both outputs."""
    y, final = scan(*tensors)
    generator = torch.Generator().manual_seed(0)
    dy, dfinal = (torch.randn(t.shape, generator=generator).to(t.device) for t in (y, final))
    loss = (y.to(dy.dtype) * dy).sum() + (final * dfinal).sum()
    return y, final, *torch.autograd.grad(loss, tensors)


def fused(*tensors):
    return selective_scan(*tensors, backend="triton")


def reference(*tensors):
    return selective_scan(*tensors, backend="reference")


def exactly(tensors):
    return results(reference, [t.detach().double().requires_grad_() for t in tensors])


def check(actual, expected, tolerance):
    for name, a, e in zip(NAMES[: len(actual)], actual, expected, strict=True):
        distance = ((a.double() - e).norm() / e.norm()).item()
        assert distance < tolerance, f"{name} differs by {distance:.1e} of its norm"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES + LARGE * CUDA, ids=str)
def test_is_the_reference(shape, dtype):
    tensors = inputs(*shape, dtype)
    actual = results(fused, tensors)
    check(actual, exactly(tensors), 1e-5 if dtype == torch.float32 else 1e-2)
    assert [t.dtype for t in actual[2:]] == [t.dtype for t in tensors]
    assert (actual[0].dtype, actual[1].dtype) == (dtype, torch.float32)


def test_outputs_and_final_state_have_gradients_of_their_own():
    tensors = inputs(2, T + 3, 20, 16)
    for which in range(2):
        gradients = [
            torch.autograd.grad(scan(*tensors)[which].square().sum(), tensors[:3]) for scan in (fused, reference)
        ]
        for actual, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_any_strides():
    tensors = inputs(2, T + 3, 20, 16)
    turned = [t.detach().mT.contiguous().mT.requires_grad_() for t in tensors]
    assert not any(t.is_contiguous() for t in turned)
    check(results(fused, turned), exactly(tensors), 1e-5)


def test_steep_decays_and_closed_steps():
    tensors = inputs(1, T + 2, 9, 16)
    with torch.no_grad():
        tensors[1][:, ::3] = 0
        tensors[1][:, 1::3] = 1e4
    check(results(fused, tensors), exactly(tensors), 1e-5)


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(2, 3, 5, 16), (1, 2, 300, 7)] + [(128, 4, 4096, 16)] * CUDA, ids=str)
def test_steps_in_place(shape, state_dtype):
    x, dt, A, B, C, state = (t.detach() for t in inputs(*shape))
    exact, last = reference(*(t.double() for t in (x, dt, A, B, C, state)))
    for held in (state.to(state_dtype), state.to(state_dtype).mT.contiguous().mT):
        outputs = []
        for t in range(shape[1]):
            y, after = selective_scan_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], held, backend="triton")
            assert after is held
            outputs.append(y)
        for a, e in ((torch.stack(outputs, 1), exact), (held, last)):
            assert (a.double() - e).norm() / e.norm() < (1e-5 if state_dtype == torch.float32 else 3e-3)


@pytest.mark.parametrize("shape", [(2, 0, 5, 16), (0, 4, 5, 16)])
def test_nothing_to_scan(shape):
    x, *rest = inputs(*shape)
    y, state = fused(x, *rest)
    assert y.shape == x.shape
    torch.testing.assert_close(state, rest[-1])


def test_outputs_are_the_same_without_gradients():
    tensors = inputs(2, T + 1, 20, 16)
    with torch.no_grad():
        without = fused(*tensors)
    for a, b in zip(without, fused(*tensors), strict=True):
        assert torch.equal(a, b)


LONG = [(1, 4 * SHORTEST + T + 1, 20, 16), (2, 4 * SHORTEST, 5, 3)]


@pytest.mark.parametrize("shape", LONG + [(2, 4099, 2048, 16), (3, 1000, 200, 24), (1, 9000, 130, 8)] * CUDA, ids=str)
def test_few_long_sequences_are_cut_where_no_gradient_is_asked(shape):
    b, N, E, S = shape
    assert segments(b * -(-E // blocks(S).forward_channels), N) > 1
    tensors = [t.detach() for t in inputs(*shape)]
    with torch.no_grad():
        actual = fused(*tensors)
    check(actual, reference(*(t.double() for t in tensors)), 1e-5)


def test_gradients_do_not_vary():
    tensors = inputs(2, T + 1, 40, 16) if CUDA else inputs(1, 3, 5, 16)  # an interpreter goes in order
    for a, b in zip(results(fused, tensors), results(fused, tensors), strict=True):
        assert torch.equal(a, b)


def test_members_are_scans_of_their_own():
    tensors = inputs(2, T + 3, 20, 16)
    stacked = [torch.stack([t.detach(), 0.5 * t.detach()]).requires_grad_() for t in tensors]
    shared = [*stacked[:3], tensors[3], *stacked[4:]]
    in_dims = (0, 0, 0, None, 0, 0)
    check(results(torch.func.vmap(fused, in_dims), shared), results(torch.func.vmap(reference, in_dims), shared), 1e-5)


@pytest.mark.parametrize("members", [False, True] if CUDA else [True])
def test_compiles_into_one_graph(members):
    tensors = inputs(2, 3, 20, 16)
    scan = fused
    if members:
        tensors = [torch.stack([t.detach(), 0.5 * t.detach()]).requires_grad_() for t in tensors]
        scan = torch.func.vmap(fused)
    compiled = torch.compile(scan, fullgraph=True, backend="inductor" if CUDA else "aot_eager")
    check(results(compiled, tensors), results(scan, tensors), 1e-6)


def test_operations_keep_the_rules_of_torch():
    x, dt, A, B, C, state = inputs(2, T + 3, 20, 16)
    A = A.detach().unsqueeze(0).requires_grad_()
    for keep in (False, True):
        arguments = (x, dt, A, B, C, state, keep)
        tests = ("test_schema", "test_faketensor") + ("test_autograd_registration",) * keep
        torch.library.opcheck(torch.ops.recallbench.selective_scan_forward.default, arguments, test_utils=tests)


@pytest.mark.skipif(not CUDA, reason="CUDA graphs are of a GPU")
def test_replays_as_a_graph():
    tensors = inputs(8, 100, 96, 16)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = results(fused, tensors)
        dy, dfinal = torch.randn_like(expected[0]), torch.randn_like(expected[1])

        def step():
            outputs = fused(*tensors)
            return *outputs, *torch.autograd.grad(outputs, tensors, (dy, dfinal))

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
    tensors = inputs(2, 40, 20, 16)
    for a, b in zip(selective_scan(*tensors), fused(*tensors), strict=True):
        assert torch.equal(a, b)
    assert selective_scan(*(t.double() for t in tensors))[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (0, lambda x: x[0], r"takes x \[\., N, E\]"),
        (1, lambda dt: dt[:, 1:], r"got dt \[2, 3, 5\], and takes \[2, 4, 5\]"),
        (3, lambda B: B[..., 1:], r"got B \[2, 4, 15\]"),
        (5, lambda state: state.double(), r"got a state in torch\.float64"),
        (4, lambda C: C.to("meta"), r"got x on (cpu|cuda:0) and C on meta"),
    ],
)
def test_says_what_does_not_fit(name, change, says):
    tensors = inputs(2, 4, 5, 16)
    tensors[name] = change(tensors[name].detach())
    with pytest.raises(ValueError, match=says):
        fused(*tensors)
