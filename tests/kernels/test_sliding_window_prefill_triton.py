"""The Triton kernels of sliding-window attention against softmax written out in float64, on a GPU or interpreted."""

import math
import os

import pytest
import torch

from kernels.sliding_window import sliding_window_attention

CUDA = torch.cuda.is_available()
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("without a GPU, test_in_the_interpreter.py runs these in another process", allow_module_level=True)

DEVICE = "cuda" if CUDA else "cpu"
HALF = torch.bfloat16 if CUDA else torch.float16  # the interpreter multiplies the bits of bfloat16 as integers
TOLERANCE = {torch.float32: 1e-5, HALF: 1e-2}
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1, False),
    (1, 2, 2, 150, 8, 24, 20, False),
    (1, 4, 2, 130, 64, 16, 16, True),
    (2, 3, 1, 70, 100, 5, 33, True),
    (1, 1, 1, 300, 150, 16, 16, False),
    (1, 2, 1, 90, 200, 16, 16, True),
]
"""B, H, G, N, W, K, V, whether there is a past: edges alone, and with tiles between them that are seen whole."""
LARGE = [
    (1, 1, 1, 16385, 64, 64, 64, False),
    (2, 16, 4, 2048, 64, 64, 64, True),
    (2, 4, 4, 1000, 3, 64, 64, True),
    (2, 4, 2, 777, 256, 128, 128, True),
    (2, 4, 1, 777, 1000, 128, 64, False),
    (2, 2, 2, 1025, 333, 100, 72, True),
    (300, 2, 2, 100, 16, 32, 32, False),
]
WIDE = [(1, 2, 1, 515, 96, 256, 256, True), (3, 2, 1, 130, 64, 192, 40, False), (1, 2, 1, 90, 200, 136, 16, True)]
"""Which float32 does not serve."""
NAMES = ("y", "dq", "dk", "dv")


def inputs(B, H, G, N, W, K, V, has_past, dtype, scale=1.0):
    """q, k and v with heads beside each other in memory, and a past that one row has whole and the others in part."""
    generator = torch.Generator().manual_seed(N + W + K)
    P = W - 1 if has_past else 0
    q, k, v = (
        (size * torch.randn(B, length, heads, width, generator=generator)).to(DEVICE, dtype).transpose(1, 2)
        for size, length, heads, width in ((scale, N, H, K), (scale, P + N, G, K), (1, P + N, G, V))
    )
    missing = torch.arange(B)[:, None] * P // 2 + (P if B == 1 else 0) // 3
    past = (torch.arange(P) >= missing).to(DEVICE) if has_past else None
    return [t.detach().requires_grad_() for t in (q, k, v)], past


def written_out(q, k, v, W, past):
    (_, H, N, K), (_, G, T, _) = q.shape, k.shape
    k, v = (t.repeat_interleave(H // G, 1) for t in (k, v))
    ago = torch.arange(T - N, T, device=q.device)[:, None] - torch.arange(T, device=q.device)
    visible = ((ago >= 0) & (ago < W)).expand(len(q), 1, N, T)
    if past is not None:
        visible = visible & torch.cat([past, past.new_ones(len(q), N)], 1)[:, None, None]
    scores = (q @ k.transpose(-1, -2) / math.sqrt(K)).masked_fill(~visible, -math.inf)
    return scores.softmax(-1) @ v


def results(attend, tensors):
    y = attend(*tensors)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    return y.detach(), *torch.autograd.grad(y, tensors, dy.to(y.dtype))


def check(actual, expected, tolerance):
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        distance = ((a.double() - e).norm() / e.norm().clamp_min(1)).item()
        assert distance < tolerance, f"{name} is off by {distance:.1e} of its norm"


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(shape, dtype) for shape in SHAPES + LARGE * CUDA for dtype in TOLERANCE] + [(shape, HALF) for shape in WIDE],
    ids=str,
)
def test_values_and_gradients(shape, dtype):
    tensors, past = inputs(*shape, dtype)
    W = shape[4]
    actual = results(lambda *t: sliding_window_attention(*t, W, past, "triton"), tensors)
    exact = results(lambda *t: written_out(*t, W, past), [t.detach().double().requires_grad_() for t in tensors])
    check(actual, exact, TOLERANCE[dtype])
    assert {t.dtype for t in actual} == {dtype}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_reference_is_softmax_written_out(shape):
    tensors, past = inputs(*shape, torch.float64)
    W = shape[4]
    reference = results(lambda *t: sliding_window_attention(*t, W, past, "reference"), tensors)
    check(reference, results(lambda *t: written_out(*t, W, past), tensors), 1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("scale", [10, 50])
def test_large_scores_stay_finite(scale, dtype):
    tensors, past = inputs(1, 1, 1, 130, 40, 64, 16, True, dtype, scale)
    for found in results(lambda *t: sliding_window_attention(*t, 40, past, "triton"), tensors):
        assert found.isfinite().all()


def test_any_strides_and_one_gradient_for_all():
    """Rows apart, elements apart, and the gradient that a sum gives: one number, expanded."""
    (q, k, v), _ = inputs(1, 2, 2, 70, 9, 16, 32, False, torch.float32)
    apart = [
        q.detach().contiguous(),
        k.detach().transpose(-1, -2).contiguous().transpose(-1, -2),
        torch.stack([v.detach()] * 2, -2)[..., 0, :],
    ]
    expected = torch.autograd.grad(written_out(q, k, v, 9, None).sum(), (q, k, v))
    leaves = [t.requires_grad_() for t in apart]
    y = sliding_window_attention(*leaves, 9, backend="triton")
    check((y, *torch.autograd.grad(y.sum(), leaves)), (written_out(q, k, v, 9, None), *expected), 1e-5)


def test_members_are_so_many_more_sequences():
    """As trainings of several members take it: the gradient outside of vmap, and what all share given once."""
    (q, k, v), past = inputs(6, 2, 1, 20, 5, 8, 8, True, torch.float32)
    leaves = [q, k, v[:2].detach().requires_grad_()]

    def each(q, k, past):
        return sliding_window_attention(q, k, leaves[2], 5, past, "triton")

    members = [t.unflatten(0, (3, 2)) for t in (q, k, past)]
    y = torch.vmap(each)(*members)
    expected = written_out(q, k, leaves[2].repeat(3, 1, 1, 1), 5, past).unflatten(0, (3, 2))
    dy = torch.randn_like(y)
    check(
        (y, *torch.autograd.grad(y, leaves, dy)),
        (expected, *torch.autograd.grad(expected, leaves, dy)),
        1e-5,
    )


def test_what_does_not_fit_is_said_in_a_sentence():
    (q, k, v), past = inputs(2, 4, 2, 5, 3, 8, 6, True, torch.float32)
    wrong = [
        ((q, k[:, :, 1:], v, 3, past), "got k \\[2, 2, 6, 8\\], and takes \\[2, 2, 7, 8\\]"),
        ((q, k, v, 3, past[:, 1:]), "got past \\[2, 1\\], and takes \\[2, 2\\]"),
        ((q, k, v, 3, None), "got 7 keys for 5 queries and no `past`, and takes 5"),
        ((q[:, :3], k, v, 3, past), "got 3 heads of queries, and takes a multiple of the 2 of keys"),
        ((q, k, v.half(), 3, past), "got q in torch.float32 and v in torch.float16, and takes one dtype"),
        ((q.double(), k, v, 3, past), "got an input in torch.float64, and its kernel takes torch.float32"),
    ]
    for arguments, sentence in wrong:
        with pytest.raises(ValueError, match=sentence):
            sliding_window_attention(*arguments, backend="triton")
