"""The Triton kernels of Taylor linear attention against the definition in float64, on a GPU or in the interpreter."""

import os

import pytest
import torch

from kernels.linear_attention import LinearAttentionState
from kernels.taylor_attention import taylor_attention, taylor_attention_step, taylor_outputs
from kernels.taylor_attention_triton import CHUNK, TILE
from kernels.taylor_features import features

CUDA = torch.cuda.is_available()
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("without a GPU, test_in_the_interpreter.py runs these in another process", allow_module_level=True)

DEVICE = "cuda" if CUDA else "cpu"
HALF = torch.bfloat16 if CUDA else torch.float16  # the interpreter multiplies the bits of bfloat16 as integers
TOLERANCE = {torch.float32: 1e-5, HALF: 1e-2}
SHAPES = [(1, 1, 1, 8, 128), (2, 1, CHUNK + 1, 16, 32), (1, 2, 2 * CHUNK, 5, 48), (1, 1, CHUNK + 7, 32, 32)]
"""B, H, N, K, V: less than a chunk, one and a bit, two; the features in one part and in several."""
LARGE = [
    (1, 1, 16385, 16, 64),
    (4, 16, 2048, 16, 64),
    (2, 3, 1000, 24, 64),
    (2, 3, 777, 24, 128),
    (2, 3, 777, 8, 128),
    (1, 2, 4097, 32, 64),
    (2, 2, 130, 32, 128),
    (1, 1, 1, 32, 32),
    (300, 2, 100, 16, 64),
]
NAMES = ("y", "S", "z", "dq", "dk", "dv", "dS", "dz")


def inputs(B, H, N, K, V, dtype):
    """q, k, v as heads of one tensor, so that none is contiguous; a state as if some tokens had come before."""
    generator = torch.Generator().manual_seed(N * K + V)
    joined = torch.randn(B, N, H, 2 * K + V, generator=generator)
    past = torch.randn(B, H, 9, K + V, generator=generator).double()
    phi = features(K)(past[..., :K])
    S, z = phi.transpose(-1, -2) @ past[..., K:], phi.sum(2)
    q, k, v = joined.to(DEVICE, dtype).transpose(1, 2).split([K, K, V], -1)
    return [t.detach().requires_grad_() for t in (q, k, v, S.float().to(DEVICE), z.float().to(DEVICE))]


def attend(q, k, v, S, z, backend="triton"):
    y, state = taylor_attention(q, k, v, LinearAttentionState(S, z), backend=backend)
    return y, *state


def by_definition(q, k, v, S, z):
    """All similarities at once, and the state as the sums that it is."""
    phi = features(q.shape[-1])
    s = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    w = (1 + s + s * s / 2).tril()
    total = w.sum(-1, keepdim=True) + phi(q) @ z.unsqueeze(-1)
    return (w @ v + phi(q) @ S) / total, S + phi(k).transpose(-1, -2) @ v, z + phi(k).sum(2)


def results(attend, tensors):
    outputs = attend(*tensors)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(t.shape, generator=generator).to(t.device) for t in outputs]
    loss = sum((t.to(torch.float64) * w).sum() for t, w in zip(outputs, weights, strict=True))
    return *outputs, *torch.autograd.grad(loss, tensors)


def check(actual, expected, tolerance):
    for name, a, e in zip(NAMES, actual, expected, strict=False):
        distance = ((a.double() - e).norm() / e.norm()).item()
        assert distance < tolerance, f"{name} is off by {distance:.1e} of its norm"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES + LARGE * CUDA, ids=str)
def test_prefill_and_its_gradients(shape, dtype):
    tensors = inputs(*shape, dtype)
    actual = results(attend, tensors)
    exact = results(by_definition, [t.detach().double().requires_grad_() for t in tensors])
    check(actual, exact, TOLERANCE[dtype])
    assert [t.dtype for t in actual[3:]] == [t.dtype for t in tensors]


def test_chunks_of_one_segment(monkeypatch):
    """As few segments as there are where sequences are many: with and without a state in front."""
    monkeypatch.setattr("kernels.taylor_attention_triton.SEGMENTS", 1)
    q, k, v, S, z = inputs(1, 1, 3 * CHUNK + 5, 16, 32, torch.float32)
    exact = results(by_definition, [t.detach().double().requires_grad_() for t in (q, k, v, S, z)])
    check(results(attend, [q, k, v, S, z]), exact, 1e-5)

    def outputs(q, k, v):
        return (taylor_outputs(q, k, v, backend="triton"),)

    def expected(q, k, v):
        return by_definition(q, k, v, 0 * S.detach().double(), 0 * z.detach().double())[:1]

    exact = results(expected, [t.detach().double().requires_grad_() for t in (q, k, v)])
    for a, e in zip(results(outputs, [q, k, v]), exact, strict=True):
        assert (a.double() - e).norm() < 1e-5 * e.norm()


@pytest.mark.parametrize("N", [1, CHUNK, 2 * CHUNK + 5])
def test_the_reference_is_the_definition(N):
    tensors = [t.detach().double().requires_grad_() for t in inputs(2, 2, N, 6, 10, torch.float32)]
    reference = results(lambda *t: attend(*t, backend="reference"), tensors)
    check(reference, results(by_definition, tensors), 1e-5)  # but for EPS


@pytest.mark.parametrize("N", [TILE + 3, CHUNK + 3])
def test_without_a_state_it_starts_from_none(N):
    """And where no state is wanted either, which up to a chunk needs none of the sums."""
    tensors = inputs(1, 2, N, 8, 16, torch.float32)
    q, k, v, S, z = tensors
    y, state = taylor_attention(q, k, v, backend="triton")
    nothing = [0 * t.detach().double() for t in (S, z)]
    check((y, *state), by_definition(*(t.detach().double() for t in (q, k, v)), *nothing), 1e-5)

    def outputs(q, k, v):
        return (taylor_outputs(q, k, v, backend="triton"),)

    def expected(q, k, v):
        return by_definition(q, k, v, *nothing)[:1]

    exact = results(expected, [t.detach().double().requires_grad_() for t in (q, k, v)])
    for name, a, e in zip(("y", "dq", "dk", "dv"), results(outputs, [q, k, v]), exact, strict=True):
        distance = ((a.double() - e).norm() / e.norm()).item()
        assert distance < 1e-5, f"{name} is off by {distance:.1e} of its norm"


@pytest.mark.parametrize(
    ("dtype", "state_dtype"), [(torch.float32, torch.float32), (torch.float32, HALF), (HALF, HALF)]
)
@pytest.mark.parametrize("shape", [(2, 2, 5, 16, 64), (1, 1, 2, 32, 48)] + [(128, 16, 4, 16, 64)] * CUDA, ids=str)
def test_decode_steps_in_place(shape, dtype, state_dtype):
    q, k, v, S, z = (t.detach() for t in inputs(*shape, dtype))
    expected = by_definition(*(t.double() for t in (q, k, v, S, z)))
    held = LinearAttentionState(S.to(state_dtype), z.to(state_dtype))
    outputs = []
    for t in range(shape[2]):
        y, after = taylor_attention_step(q[:, :, t], k[:, :, t], v[:, :, t], held, backend="triton")
        assert [a.data_ptr() for a in after] == [h.data_ptr() for h in held]
        outputs.append(y)
    check((torch.stack(outputs, 2), *held), expected, max(TOLERANCE[dtype], TOLERANCE[state_dtype]))


@pytest.mark.parametrize(
    ("state_dtype", "rounding"), [(HALF, 1 / 256), (torch.float8_e4m3fn, 1 / 8), (torch.float8_e5m2, 1 / 4)]
)
def test_a_narrow_state_is_rounded_when_it_is_stored_and_not_before(state_dtype, rounding):
    """The unit of the last place is 1/8 at most in e4m3 and 1/4 in e5m2; the interpreter cuts off rather than round."""
    q, k, v, S, z = (t.detach() for t in inputs(2, 2, 1, 16, 32, torch.float32))
    held = LinearAttentionState(S.to(state_dtype), z.to(state_dtype))
    S, z = (t.double() for t in held)
    y, S, z = by_definition(q.double(), k.double(), v.double(), S, z)
    actual, _ = taylor_attention_step(q[:, :, 0], k[:, :, 0], v[:, :, 0], held, backend="triton")
    check((actual,), (y[:, :, 0],), 1e-5)
    check(held, (S, z), rounding)


def test_the_denominator_after_a_hundred_thousand_tokens():
    """Sums of so many tokens in front: what is added to them in float32 keeps its relative error."""
    q, k, v, S, z = (t.detach() for t in inputs(1, 1, CHUNK + 1, 8, 16, torch.float32))
    S, z = 1e4 * S, 1e4 * z
    exact = by_definition(*(t.double() for t in (q, k, v, S, z)))
    y, state = taylor_attention(q, k, v, LinearAttentionState(S, z), backend="triton")
    check((y, *state), exact, 1e-5)
    last = LinearAttentionState(S.clone(), z.clone())
    outputs = [taylor_attention_step(q[:, :, t], k[:, :, t], v[:, :, t], last, backend="triton")[0] for t in range(3)]
    check((torch.stack(outputs, 2),), (exact[0][:, :, :3],), 1e-5)


@pytest.mark.skipif(not CUDA, reason="a long sequence, step by step")
def test_decode_does_not_drift():
    q, k, v, S, z = (t.detach() for t in inputs(1, 2, 16385, 16, 64, torch.float32))
    exact = by_definition(*(t.double() for t in (q, k, v, S, z)))
    held = LinearAttentionState(S.clone(), z.clone())
    for t in range(q.shape[2]):
        y, _ = taylor_attention_step(q[:, :, t], k[:, :, t], v[:, :, t], held, backend="triton")
    check((y, *held), (exact[0][:, :, -1], *exact[1:]), 1e-5)


def test_every_way_on_is_refused_in_a_sentence():
    q, k, v, S, z = (t.detach() for t in inputs(1, 2, 5, 8, 16, torch.float32))
    wrong = [
        ((q, k[..., :4], v, None), "got k \\[1, 2, 5, 4\\], and takes \\[1, 2, 5, 8\\] with q \\[1, 2, 5, 8\\]"),
        ((q, k, v, LinearAttentionState(S[:, :, 1:], z)), "got S \\[1, 2, 44, 16\\], and takes \\[1, 2, 45, 16\\]"),
        ((q, k, v.half(), None), "got q in torch.float32 and v in torch.float16, and takes one dtype"),
        (
            (q.double(), k.double(), v.double(), None),
            "got an input in torch.float64, and its kernel takes torch.float32, torch.bfloat16, torch.float16",
        ),
        ((q, k, v.to("meta"), None), "and v on meta, and takes one device"),
        ((torch.zeros(1, 2, 5, 33, device=DEVICE),) * 2 + (v, None), "got K = 33, and its kernel takes K from 5 to 32"),
        ((q[0], k[0], v[0], None), "takes q \\[B, H, N, K\\] and v \\[B, H, N, V\\], not \\[2, 5, 8\\]"),
    ]
    for arguments, sentence in wrong:
        with pytest.raises(ValueError, match=sentence):
            taylor_attention(*arguments, backend="triton")
