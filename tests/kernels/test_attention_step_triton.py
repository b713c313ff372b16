"""The Triton kernels of a step of attention over a cache against softmax written out in float64."""

import math
import os

import pytest
import torch

from kernels.attention import attention_step
from kernels.attention_step_triton import LEAST_SPAN

CUDA = torch.cuda.is_available()
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("without a GPU, test_in_the_interpreter.py runs these in another process", allow_module_level=True)

DEVICE = "cuda" if CUDA else "cpu"
HALF = torch.bfloat16 if CUDA else torch.float16
TOLERANCE = {torch.float32: 1e-5, HALF: 1e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("H", "G", "C", "K", "V"),
    [(1, 1, 1, 1, 1), (6, 2, 70, 24, 20), (2, 1, 2 * LEAST_SPAN + 9, 16, 8), (2, 2, 40, 70, 64)]
    + [(24, 24, 2048, 70, 70), (16, 4, 1000, 128, 128), (16, 16, 2048, 112, 112), (20, 1, 333, 64, 256)] * CUDA,
)
@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_steps_over_a_cache(H, G, C, K, V, dtype, backend):
    """Rows of different ages, from an empty cache to one with room for one more; what is past them is never read."""
    ages = torch.tensor(sorted({0, C // 3, min(LEAST_SPAN, C - 1), C - 1}))
    B = len(ages)
    generator = torch.Generator().manual_seed(C + K)
    q, k, v = (torch.randn(B, *shape, generator=generator).to(DEVICE, dtype) for shape in ((H, K), (G, K), (G, V)))
    caches = [torch.randn(B, G, C, width, generator=generator).to(DEVICE, dtype) for width in (K, V)]
    if backend == "triton":
        for b, age in enumerate(ages.tolist()):
            for cache in caches:
                cache[b, :, age:] = math.nan
    y = attention_step(q, k, v, *caches, ages.to(DEVICE), backend=backend)
    for b, age in enumerate(ages.tolist()):
        for cache, new in zip(caches, (k, v), strict=True):
            assert torch.equal(cache[b, :, age], new[b])
        keys, values = (t[b, :, : age + 1].double().repeat_interleave(H // G, 0) for t in caches)
        p = (torch.einsum("hk,hnk->hn", q[b].double(), keys) / math.sqrt(K)).softmax(-1)
        expected = torch.einsum("hn,hnv->hv", p, values)
        distance = ((y[b].double() - expected).norm() / expected.norm()).item()
        assert distance < TOLERANCE[dtype], f"after {age} tokens it is off by {distance:.1e} of its norm"


def test_heads_that_do_not_fit_are_said_in_a_sentence():
    q, k, cache = (torch.zeros(shape, device=DEVICE) for shape in ((2, 3, 8), (2, 2, 8), (2, 2, 5, 8)))
    length = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    with pytest.raises(ValueError, match="attention_step got 3 heads of queries, and takes a multiple of the 2"):
        attention_step(q, k, k, cache, cache.clone(), length, backend="triton")
