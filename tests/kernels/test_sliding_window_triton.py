"""The Triton kernel of a sliding-window step against softmax over the last W positions, written out in float64."""

import math
import os

import pytest
import torch

from kernels.sliding_window import RingBuffer, sliding_window_step

CUDA = torch.cuda.is_available()
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("without a GPU, test_in_the_interpreter.py runs these in another process", allow_module_level=True)

DEVICE = "cuda" if CUDA else "cpu"
HALF = torch.bfloat16 if CUDA else torch.float16
TOLERANCE = {torch.float32: 1e-5, HALF: 1e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("H", "G", "W", "K", "V"),
    [(1, 1, 1, 1, 1), (4, 2, 5, 24, 20), (2, 2, 40, 16, 64), (3, 1, 32, 64, 8)] + [(16, 16, 64, 64, 64)] * CUDA,
)
def test_steps_over_a_ring(H, G, W, K, V, dtype):
    """Rows of different ages, from an empty ring to one that was filled twice, three steps each."""
    ages = torch.tensor([0, W // 2, W - 1, W, 2 * W + 1])
    B, N = len(ages), 2 * W + 4
    generator = torch.Generator().manual_seed(W + K)
    q, k, v = (
        torch.randn(N, B, heads, width, generator=generator).to(DEVICE, dtype)
        for heads, width in ((H, K), (G, K), (G, V))
    )
    rings = [torch.full((B, W, G, width), math.nan, dtype=dtype, device=DEVICE) for width in (K, V)]
    for b, age in enumerate(ages.tolist()):
        for t in range(age):
            for ring, new in zip(rings, (k, v), strict=True):
                ring[b, t % W] = new[t, b]
    state, row = RingBuffer(*rings, ages.to(DEVICE, copy=True)), torch.arange(B)
    for later in range(3):
        at = ages + later
        y, after = sliding_window_step(q[at, row], k[at, row], v[at, row], state, backend="triton")
        assert [a.data_ptr() for a in after] == [s.data_ptr() for s in state]
        assert after.length.tolist() == (at + 1).tolist()
        for b, t in enumerate(at.tolist()):
            keys, values = (x[max(0, t + 1 - W) : t + 1, b].double().repeat_interleave(H // G, 1) for x in (k, v))
            p = (torch.einsum("hk,nhk->hn", q[t, b].double(), keys) / math.sqrt(K)).softmax(-1)
            expected = torch.einsum("hn,nhv->hv", p, values)
            distance = ((y[b].double() - expected).norm() / expected.norm()).item()
            assert distance < TOLERANCE[dtype], f"after {t} tokens it is off by {distance:.1e} of its norm"
            assert torch.equal(state.k[b, t % W], k[t, b])
            assert torch.equal(state.v[b, t % W], v[t, b])


def test_what_does_not_fit_is_said_in_a_sentence():
    def zeros(*shape):
        return torch.zeros(shape, device=DEVICE)

    length = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    right = [zeros(2, 4, 8), zeros(2, 2, 8), zeros(2, 2, 6), zeros(2, 5, 2, 8), zeros(2, 5, 2, 6), length]
    wrong = [
        (1, zeros(2, 4, 8), "got k \\[2, 4, 8\\], and takes \\[2, 2, 8\\]"),
        (
            2,
            zeros(2, 2, 6).double(),
            "got an input in torch.float64, and its kernel takes torch.float32, torch.bfloat16, torch.float16",
        ),
        (
            3,
            zeros(2, 2, 5, 8).transpose(1, 2),
            "got a state that is not contiguous, and its kernel updates it in place",
        ),
        (0, zeros(2, 3, 8), "got 3 heads of queries, and takes a multiple of the 2 of keys"),
    ]
    for place, argument, sentence in wrong:
        changed = [*right[:place], argument, *right[place + 1 :]]
        with pytest.raises(ValueError, match=sentence):
            sliding_window_step(*changed[:3], RingBuffer(*changed[3:]), backend="triton")
