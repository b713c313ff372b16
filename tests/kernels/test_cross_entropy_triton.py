"""The Triton kernels of the linear head's cross-entropy against PyTorch's in float64, on a GPU or interpreted."""

import os

import pytest
import torch
import torch.nn.functional as F

from kernels import cross_entropy_chunks_triton
from kernels.cross_entropy import IGNORED, linear_answers, linear_cross_entropy
from kernels.cross_entropy_chunks_triton import chunked_answers, chunked_cross_entropy
from kernels.cross_entropy_triton import fused_answers, fused_cross_entropy

CUDA = torch.cuda.is_available()
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("without a GPU, test_in_the_interpreter.py runs these in another process", allow_module_level=True)

DEVICE = "cuda" if CUDA else "cpu"
HALF = torch.bfloat16 if CUDA else torch.float16  # the interpreter multiplies the bits of bfloat16 as integers
TOLERANCE = {torch.float32: 1e-5, HALF: 1e-2}
SHAPES = [(1, 16, 2), (3, 8, 300), (70, 48, 129), (17, 200, 64)]
LARGE = [(16384, 128, 8192), (1024, 64, 8192), (2049, 256, 5000), (300, 130, 50257)]
WIDE = [(2, 300, 9000), (21, 264, 300)]
WIDE_LARGE = [(4096, 512, 50257), (1000, 1024, 8192)]
FORMS = {"narrow": (fused_cross_entropy, fused_answers), "wide": (chunked_cross_entropy, chunked_answers)}
CASES = [("narrow", shape) for shape in SHAPES + LARGE * CUDA]
CASES += [("wide", shape) for shape in SHAPES + WIDE + WIDE_LARGE * CUDA]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Several for all but the smallest shapes, of 16 rows of 300 logits where an interpreter runs."""
    monkeypatch.setattr(cross_entropy_chunks_triton, "CHUNK_BYTES", 2**26 if CUDA else 16 * 320 * 2)


def operands(R, D, V, dtype):
    """Rows [R, D] and weights [V, D] whose logits are a few units large, targets [R], some of which ask nothing."""
    generator = torch.Generator().manual_seed(R + D + V)
    x, weight = torch.randn(R, D, generator=generator), 3 * torch.randn(V, D, generator=generator) / D**0.5
    targets = torch.randint(V, (R,), generator=generator)
    targets[torch.rand(R, generator=generator) < 0.2] = IGNORED
    x, weight = (t.to(DEVICE, dtype).requires_grad_() for t in (x, weight))
    return x, weight, targets.to(DEVICE)


def exactly(x, weight, targets):
    x, weight = (t.detach().double().requires_grad_() for t in (x, weight))
    return x, weight, F.cross_entropy(x @ weight.T, targets, ignore_index=IGNORED, reduction="none")


def close(actual, expected, tolerance):
    distance = (actual.double() - expected).norm() / expected.norm().clamp_min(1e-30)
    assert distance <= tolerance, f"{distance.item():.1e} of its norm"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("form", "shape"), CASES, ids=str)
def test_losses_and_gradients(form, shape, dtype):
    x, weight, targets = operands(*shape, dtype)
    losses = FORMS[form][0](x, weight, targets)
    x64, weight64, exact = exactly(x, weight, targets)
    close(losses.detach(), exact.detach(), TOLERANCE[dtype])
    assert (losses[targets == IGNORED] == 0).all()
    share = torch.rand(len(x), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    gradients = torch.autograd.grad(losses @ share, [x, weight])
    for actual, expected, of in zip(
        gradients, torch.autograd.grad(exact @ share.double(), [x64, weight64]), (x, weight), strict=True
    ):
        close(actual, expected, TOLERANCE[dtype])
        assert actual.dtype == of.dtype


@pytest.mark.parametrize(("form", "shape"), CASES, ids=str)
def test_answers_are_the_largest_logits(form, shape):
    x, weight, targets = operands(*shape, torch.float32)
    losses, answers = FORMS[form][1](x, weight, targets)
    _, _, exact = exactly(x, weight, targets)
    close(losses, exact.detach(), TOLERANCE[torch.float32])
    logits = x.detach().double() @ weight.detach().double().T
    chosen = logits.gather(1, answers[:, None]).squeeze(1)
    torch.testing.assert_close(chosen, logits.max(1).values, rtol=0, atol=1e-4)  # of two that are equal, either


@pytest.mark.parametrize("form", FORMS)
def test_the_first_of_equal_logits_is_the_answer(form):
    weight = torch.ones(300, 16, device=DEVICE)
    weight[7:290:90] = 2
    _, answers = FORMS[form][1](torch.ones(5, 16, device=DEVICE), weight, torch.zeros(5, dtype=int, device=DEVICE))
    assert answers.tolist() == [7] * 5


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("form", FORMS)
def test_logits_far_apart_stay_finite(form, dtype):
    x, weight, targets = operands(8, 16, 40, dtype)
    losses = FORMS[form][0](20 * x, 20 * weight, targets)
    gradients = torch.autograd.grad(losses.sum(), [x, weight])
    assert all(t.isfinite().all() for t in (losses, *gradients))


@pytest.mark.parametrize("form", FORMS)
def test_no_loss_is_below_zero(form):
    """Where the target has all of the softmax, what is left of the loss is the rounding of two logits."""
    x, weight, _ = operands(64, 48, 40, torch.float32)
    losses = FORMS[form][0](20 * x, 20 * weight, (x @ weight.T).argmax(-1))
    assert (losses >= 0).all()
    assert (losses < 1e-3).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", ["x", "weight"])
@pytest.mark.parametrize("form", FORMS)
def test_a_loss_that_is_not_finite_is_told(form, at, bad):
    """A run that broke down must not seem to have learned all: the largest of NaN and 0 is 0 on a GPU."""
    x, weight, targets = operands(20, 16, 70, torch.float32)
    with torch.no_grad():
        {"x": x, "weight": weight}[at][3, 2] = bad
    broken = ~exactly(x, weight, targets)[2].isfinite()
    assert broken.any()
    assert (~FORMS[form][0](x, weight, targets).isfinite() == broken).all()
    assert (~FORMS[form][1](x, weight, targets)[0].isfinite() == broken).all()


@pytest.mark.parametrize("form", FORMS)
def test_no_row_at_all(form):
    x, weight = torch.zeros(0, 16, device=DEVICE, requires_grad=True), torch.ones(9, 16, device=DEVICE)
    weight.requires_grad_()
    losses = FORMS[form][0](x, weight, torch.zeros(0, dtype=int, device=DEVICE))
    assert losses.shape == (0,)
    assert (torch.autograd.grad(losses.sum(), weight)[0] == 0).all()
    assert all(t.shape == (0,) for t in FORMS[form][1](x, weight, torch.zeros(0, dtype=int, device=DEVICE)))


@pytest.mark.parametrize("form", FORMS)
def test_any_strides(form):
    x, weight, targets = operands(20, 16, 70, torch.float32)
    expected = FORMS[form][0](x, weight, targets)
    x2, weight2 = (torch.stack([t.detach().T, t.detach().T], -1)[..., 0].T.requires_grad_() for t in (x, weight))
    losses = FORMS[form][0](x2, weight2, torch.stack([targets, targets], 1)[:, 0])
    torch.testing.assert_close(losses, expected)
    for actual, of in zip(
        torch.autograd.grad(losses.sum(), [x2, weight2]), torch.autograd.grad(expected.sum(), [x, weight]), strict=True
    ):
        torch.testing.assert_close(actual, of)


@pytest.mark.parametrize("form", FORMS)
def test_compiled_and_for_members_it_is_the_same(form):
    """In one graph, and under vmap with weights of each member's own, whose gradients stay apart."""
    x, weight, targets = operands(20, 16, 70, torch.float32)
    call = FORMS[form][0]

    def gradients(call, x, weight):
        losses = call(x, weight, targets)
        return losses.detach(), *torch.autograd.grad(losses.square().sum(), [x, weight])

    alone = gradients(call, x, weight)
    torch.testing.assert_close(gradients(torch.compile(call, fullgraph=True, backend="aot_eager"), x, weight), alone)
    xs, weights = (torch.stack([t.detach(), -t.detach()]).requires_grad_() for t in (x, weight))
    together = gradients(torch.func.vmap(call, in_dims=(0, 0, None)), xs, weights)
    torch.testing.assert_close([t[0] for t in together], list(alone))


@pytest.mark.parametrize("width", [64, 1024])
def test_public_functions_of_any_width_under_autocast(width):
    x, weight, targets = operands(40, width, 500, torch.float32)
    _, _, exact = exactly(x.to(HALF), weight.to(HALF), targets)
    arguments = (x.view(5, 8, width), weight, targets.view(5, 8), "triton")
    with torch.autocast(DEVICE, HALF):
        losses = linear_cross_entropy(*arguments)
        again, answers = linear_answers(*arguments)
    for actual in (losses, again):
        assert (actual.shape, actual.dtype) == ((5, 8), torch.float32)
        close(actual.detach().flatten(), exact.detach(), 1e-2)
    assert answers.shape == (5, 8)
