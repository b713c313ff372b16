"""Softmax attention and its window against softmax written out in float64, on whatever device there is."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.attention import causal_attention, masked_attention
from kernels.sliding_window import sliding_window_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
B, H, K = 3, 2, 64
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}


def operands(N, dtype, scale=1.0):
    generator = torch.Generator().manual_seed(N)
    tensors = [torch.randn(B, H, N, K, generator=generator) for _ in range(4)]
    q, k, v, dy = (t.to(DEVICE, dtype) for t in (scale * tensors[0], scale * tensors[1], *tensors[2:]))
    return [t.requires_grad_() for t in (q, k, v)], dy


def band(N, W):
    t = torch.arange(N, device=DEVICE)
    return (t[:, None] >= t) & (t[:, None] - t < W)


def written_out(q, k, v, W):
    scores = q @ k.transpose(-1, -2) / math.sqrt(K)
    return scores.masked_fill(~band(q.shape[-2], W), -math.inf).softmax(-1) @ v


def results(attend, tensors, dy):
    y = attend(*tensors)
    return [y.detach(), *torch.autograd.grad(y, tensors, dy.to(y.dtype))]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("N", "W"), [(1, 1), (7, 3), (64, 16), (200, 200), (300, 65)])
def test_is_softmax_written_out(N, W, dtype):
    tensors, dy = operands(N, dtype)
    exact = results(lambda *t: written_out(*t, W), [t.detach().double().requires_grad_() for t in tensors], dy)
    ways = {
        "windowed": lambda *t: sliding_window_attention(*t, W),
        "masked": lambda *t: masked_attention(*t, band(N, W)),
        **({"causal": causal_attention} if W == N else {}),
    }
    for way, attend in ways.items():
        for of, actual, expected in zip("yqkv", results(attend, tensors, dy), exact, strict=True):
            distance = (actual.double() - expected).norm() / expected.norm().clamp_min(1)
            assert distance < TOLERANCE[dtype], f"{way}: {of} is off by {distance:.1e} of its norm"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("W", [8, 256])
@pytest.mark.parametrize("scale", [10, 100])
def test_large_scores_stay_finite(scale, W, dtype):
    tensors, dy = operands(256, dtype, scale)
    for found in results(lambda *t: sliding_window_attention(*t, W), tensors, dy):
        assert found.isfinite().all()


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [t.untyped_storage().nbytes() // t.itemsize for t in tree_leaves(made) if isinstance(t, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return made


def test_a_window_takes_memory_that_grows_with_n_and_not_with_its_square():
    N, W = 16384, 64
    q, k, v = (torch.empty(1, H, N, K, device="meta") for _ in range(3))
    with Largest() as largest:
        assert sliding_window_attention(q, k, v, W).shape == q.shape
    assert largest.elements <= 2 * H * N * 2 * max(W, K)  # of scores or keys in blocks, twice over
