"""The Triton kernel of a sliding-window step against softmax over the last W positions, written out in float64."""

import math
import os

import pytest
import torch

from kernels.sliding_window_triton import fused_window_step

CUDA = torch.cuda.is_available()
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("without a GPU, test_in_the_interpreter.py runs these in another process", allow_module_level=True)

DEVICE = "cuda" if CUDA else "cpu"
HALF = torch.bfloat16 if CUDA else torch.float16
TOLERANCE = {torch.float32: 1e-5, HALF: 1e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("B", "H", "G", "W", "K", "V"),
    [(1, 1, 1, 1, 1, 1), (3, 4, 2, 5, 24, 20), (2, 2, 2, 20, 16, 64), (2, 3, 1, 16, 64, 8)],
)
def test_steps_over_a_ring(B, H, G, W, K, V, dtype):
    """Rows of different ages, some of whose rings are not full yet."""
    N = 2 * W + 3
    generator = torch.Generator().manual_seed(W + K)
    q, k, v = (
        torch.randn(N, B, heads, width, generator=generator).to(DEVICE, dtype)
        for heads, width in ((H, K), (G, K), (G, V))
    )
    ring_k, ring_v = (torch.full((B, W, G, width), math.nan, dtype=dtype, device=DEVICE) for width in (K, V))
    length = torch.zeros(B, dtype=torch.int64, device=DEVICE)
    for t in range(N):
        y = fused_window_step(q[t], k[t], v[t], ring_k, ring_v, length)
        length += 1
        seen = slice(max(0, t + 1 - W), t + 1)
        keys, values = (x[seen].double().repeat_interleave(H // G, 2) for x in (k, v))  # [n, B, H, *]
        p = (torch.einsum("bhk,nbhk->bhn", q[t].double(), keys) / math.sqrt(K)).softmax(-1)
        expected = torch.einsum("bhn,nbhv->bhv", p, values)
        distance = ((y.double() - expected).norm() / expected.norm()).item()
        assert distance < TOLERANCE[dtype], f"after {t} tokens it is off by {distance:.1e} of its norm"
        assert torch.equal(ring_k[:, t % W], k[t])
        assert torch.equal(ring_v[:, t % W], v[t])


def test_what_does_not_fit_is_said_in_a_sentence():
    def zeros(*shape):
        return torch.zeros(shape, device=DEVICE)

    length = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    right = [zeros(2, 4, 8), zeros(2, 2, 8), zeros(2, 2, 6), zeros(2, 5, 2, 8), zeros(2, 5, 2, 6), length]
    wrong = [
        (1, zeros(2, 4, 8), "got k \\[2, 4, 8\\], and takes \\[2, 2, 8\\]"),
        (2, zeros(2, 2, 6).double(), "got v in torch.float64, and its kernel takes float32, bfloat16 or float16"),
        (3, zeros(2, 2, 5, 8).transpose(1, 2), "got ring_k that is not contiguous, and updates it in place"),
        (0, zeros(2, 3, 8), "got 3 heads of queries, and takes a multiple of the 2 of keys"),
    ]
    for place, argument, sentence in wrong:
        with pytest.raises(ValueError, match=sentence):
            fused_window_step(*right[:place], argument, *right[place + 1 :])
