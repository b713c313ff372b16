"""Recurrences by fla's kernels are the references', on a GPU; elsewhere who asks for them is told why not."""

import pytest
import torch
import torch.nn.functional as F

from kernels import recurrences_of_fla
from kernels.backend import using
from kernels.delta_rule import delta_rule
from kernels.diagonal_delta_rule import diagonal_delta_rule
from kernels.gated_linear_attention import gated_linear_attention


def plain_delta_rule(q, k, v, beta, state, **options):
    return delta_rule(q, k, v, beta, None, state, **options)


RECURRENCES = {
    "gated_linear_attention": gated_linear_attention,
    "delta_rule": plain_delta_rule,
    "gated_delta_rule": delta_rule,
    "diagonal_delta_rule": diagonal_delta_rule,
}
WRONG = "the gradient of its delta rule is wrong"
SHAPES = [(2, 1, 1, 16, 16), (2, 3, 70, 16, 32), (1, 2, 130, 64, 64), (4, 2, 256, 32, 64), (1, 1, 1000, 128, 128)]


def inputs(name, B, H, N, K, V, device, dtype):
    """What a mixer gives the recurrence: decays above 0.5, unit keys where one erases along them, and a state."""
    generator = torch.Generator().manual_seed(N + K)
    r, k, v, p = (torch.randn(B, H, N, width, generator=generator).to(dtype) for width in (K, K, V, K))
    rate, decay = torch.rand(B, H, N, 1, generator=generator), -0.7 * torch.rand(B, H, N, K, generator=generator)
    state, p = torch.randn(B, H, K, V, generator=generator), F.normalize(p, dim=-1)
    chosen = {
        "gated_linear_attention": (r, k, v, decay, state),
        "delta_rule": (r, p, v, rate[..., 0], state),
        "gated_delta_rule": (r, p, v, rate[..., 0], decay[..., 0], state),
        "diagonal_delta_rule": (r, decay, k, v, -p, (rate * p).to(dtype), state),
    }[name]
    return [t.to(device).requires_grad_() for t in chosen]


def results(recurrence, tensors):
    """Outputs, final state and all gradients."""
    y, final = recurrence(*tensors)
    final = final() if callable(final) else final
    generator = torch.Generator().manual_seed(0)
    dy, dfinal = (torch.randn(t.shape, generator=generator).to(t.device) for t in (y, final))
    loss = (y.to(dy.dtype) * dy).sum() + (final * dfinal).sum()
    return y, final, *torch.autograd.grad(loss, tensors)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fla's kernels run on a GPU")
@pytest.mark.skipif(not recurrences_of_fla.INSTALLED, reason="flash-linear-attention is not installed")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", RECURRENCES)
def test_is_the_reference(name, shape):
    tensors = inputs(name, *shape, "cuda", torch.bfloat16)
    exact = results(RECURRENCES[name], [t.detach().double().requires_grad_() for t in tensors])
    with using("fla"):
        if name in {"delta_rule", "gated_delta_rule"} and recurrences_of_fla.miscompiled(tensors[0].device):
            with pytest.raises(ValueError, match=WRONG):
                results(RECURRENCES[name], tensors)
            with torch.no_grad():
                found, exact = RECURRENCES[name](*tensors), exact[:2]
        else:
            found = results(RECURRENCES[name], tensors)
    for i, (a, e) in enumerate(zip(found, exact, strict=True)):
        distance = ((a.double() - e).norm() / e.norm()).item()
        assert distance < 1e-2, f"number {i} differs by {distance:.1e} of its norm"


@pytest.mark.parametrize(("version", "refused"), [((3, 3, 1), False), ((3, 6, 0), True), ((3, 7, 1), False)])
def test_a_gradient_that_is_wrong_is_refused(version, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(recurrences_of_fla, "TRITON", version)
    assert recurrences_of_fla.miscompiled(torch.device("cuda")) == refused
    q, k, v, beta, state = inputs("delta_rule", 1, 1, 4, 16, 16, "cpu", torch.bfloat16)
    if refused:
        with pytest.raises(ValueError, match=WRONG):
            recurrences_of_fla.delta_rule(q, k, v, beta, None, state)


@pytest.mark.parametrize("name", RECURRENCES)
def test_who_asks_for_it_in_vain_is_told_why(name, monkeypatch):
    tensors = inputs(name, 1, 1, 4, 16, 16, "cpu", torch.float32)
    expected = RECURRENCES[name](*tensors, backend="reference")[0]
    assert torch.equal(RECURRENCES[name](*tensors)[0], expected)
    monkeypatch.setattr(recurrences_of_fla, "INSTALLED", True)
    with pytest.raises(ValueError, match=r"backend=fla got values in torch\.float32 on cpu, and takes bfloat16"):
        RECURRENCES[name](*tensors, backend="fla")
    monkeypatch.setattr(recurrences_of_fla, "INSTALLED", False)
    with using("fla"), pytest.raises(ValueError, match=r"needs flash-linear-attention: pip install"):
        RECURRENCES[name](*tensors)
