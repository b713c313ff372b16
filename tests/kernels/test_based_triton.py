"""The Triton kernel of a Based step against its two references, on a GPU or in Triton's interpreter."""

import os

import pytest
import torch

from kernels.based import BasedState, based_step
from kernels.linear_attention import LinearAttentionState
from kernels.sliding_window import RingBuffer
from kernels.taylor_features import feature_count

CUDA = torch.cuda.is_available()
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("without a GPU, test_in_the_interpreter.py runs these in another process", allow_module_level=True)

DEVICE = "cuda" if CUDA else "cpu"
HALF = torch.bfloat16 if CUDA else torch.float16


def heads(B, H, G, K, V, generator, dtype):
    shapes = ((B, H, K), (B, G, K), (B, G, V))
    return tuple(torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes)


def copied(state, dtype):
    S, z = (t.to(dtype, copy=True) for t in state.linear_attention)
    k, v, length = state.sliding_window
    return BasedState(
        LinearAttentionState(S, z), RingBuffer(k.to(dtype, copy=True), v.to(dtype, copy=True), length + 0)
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (HALF, 1e-2)])
@pytest.mark.parametrize(
    ("B", "H", "K", "V", "window_H", "G", "W", "width"),
    [(2, 2, 16, 32, 2, 2, 5, 32), (1, 1, 32, 48, 4, 2, 40, 24)] + [(128, 16, 16, 64, 16, 16, 64, 64)] * CUDA,
)
def test_is_both_memories(B, H, K, V, window_H, G, W, width, dtype, tolerance):
    generator = torch.Generator().manual_seed(K + V)
    F = feature_count(K)
    S, z = torch.randn(B, H, F, V, generator=generator), 20 + torch.rand(B, H, F, generator=generator)
    z[..., 1:] -= 20
    rings = torch.randn(2, B, W, G, width, generator=generator)
    length = torch.arange(B) + W - 2
    start = BasedState(
        LinearAttentionState(S.to(DEVICE), z.to(DEVICE)), RingBuffer(*rings.to(DEVICE), length.to(DEVICE))
    )
    state, exact = copied(start, dtype), copied(copied(start, dtype), torch.float64)
    places = [t.data_ptr() for part in state for t in part]
    for _ in range(3):
        far = heads(B, H, H, K, V, generator, dtype)
        near = heads(B, window_H, G, width, width, generator, dtype)
        *outputs, state = based_step(far, near, state, backend="triton")
        wide = [tuple(t.double() for t in side) for side in (far, near)]
        *expected, exact = based_step(*wide, exact, backend="reference")
        for a, e in zip(outputs, expected, strict=True):
            assert a.dtype == dtype
            assert (a.double() - e).norm() / e.norm() < tolerance
    for part, exactly in zip(state, exact, strict=True):
        for a, e in zip(part, exactly, strict=True):
            assert (a.double() - e).norm() / e.double().norm() < tolerance
    assert [t.data_ptr() for part in state for t in part] == places
