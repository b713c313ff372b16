"""Who computes what, on whatever device there is."""

import pytest
import torch

from kernels.backend import INTERPRETED, KERNELS, NARROW, WIDE, obstacle, takes_triton, using
from kernels.linear_attention import LinearAttentionState
from kernels.short_conv import short_conv
from kernels.taylor_attention import taylor_attention, taylor_attention_step
from kernels.taylor_features import feature_count

GPU = torch.device("cuda:0")


class OnAGpu:
    """Stands for a tensor on a GPU, of which the choice only asks so much."""

    is_cuda, device = True, GPU

    def __init__(self, dtype=torch.float32, requires_grad=False, contiguous=True, count=1):
        self.dtype, self.requires_grad, self.contiguous, self.count = dtype, requires_grad, contiguous, count

    def numel(self):
        return self.count

    def is_contiguous(self):
        return self.contiguous


def sizes(kernel, end=0, **changes):
    return {name: ends[end] for name, ends in KERNELS[kernel].sizes.items()} | changes


@pytest.mark.parametrize("kernel", KERNELS)
def test_on_a_gpu_triton_computes_what_it_serves_and_nothing_else(kernel):
    serves = KERNELS[kernel]

    def taken(inputs, state=(), **changes):
        return takes_triton(kernel, None, inputs, state, **sizes(kernel, **changes))

    for dtype in WIDE + NARROW + (torch.float64,):
        assert taken([OnAGpu()], [OnAGpu(dtype)]) == (dtype in serves.state)
        assert taken([OnAGpu(dtype)]) == (dtype in WIDE)
    for name, (least, most) in serves.sizes.items():
        for size in (least - 1, least, most, most + 1):
            assert taken([OnAGpu()], **{name: size}) == (least <= size <= most)
    wants_gradient = [OnAGpu(requires_grad=True)]
    assert taken(wants_gradient) == serves.gradient
    with torch.no_grad():
        assert taken(wants_gradient)
    assert taken([OnAGpu()], [OnAGpu(contiguous=False)]) != serves.contiguous
    assert not takes_triton(kernel, "triton", [OnAGpu(count=0)], **sizes(kernel))


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_reference_is_always_there(kernel):
    assert not takes_triton(kernel, "reference", [OnAGpu()], **sizes(kernel))
    with using("reference"):
        assert not takes_triton(kernel, None, [OnAGpu()], **sizes(kernel))
        assert takes_triton(kernel, "triton", [OnAGpu()], **sizes(kernel))  # what a call says comes first
        with using(None):
            assert takes_triton(kernel, None, [OnAGpu()], **sizes(kernel))
        assert not takes_triton(kernel, None, [OnAGpu()], **sizes(kernel))
    assert takes_triton(kernel, None, [OnAGpu()], **sizes(kernel))
    with using("fla"):  # which has none of these
        assert takes_triton(kernel, None, [OnAGpu()], **sizes(kernel))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs kernels on a CPU")
def test_a_cpu_has_no_kernel_and_says_so():
    K = 8
    q, v, F = torch.randn(1, 1, 5, K), torch.randn(1, 1, 5, 16), feature_count(K)
    state = LinearAttentionState(torch.zeros(1, 1, F, 16), torch.zeros(1, 1, F))
    x, weight = torch.randn(1, 5, 4), torch.randn(4, 1, 3)
    for call in (
        lambda backend: taylor_attention(q, q, v, backend=backend),
        lambda backend: taylor_attention_step(q[:, :, 0], q[:, :, 0], v[:, :, 0], state, backend=backend),
        lambda backend: short_conv(x, weight, None, torch.zeros(1, 2, 4), backend=backend),
    ):
        call(None)
        call("reference")
        with pytest.raises(ValueError, match="got tensors on cpu, and its kernel takes those on a GPU; backend=refer"):
            call("triton")


def test_what_is_in_the_way_is_said_in_one_sentence():
    def said(inputs, state=(), **changed):
        return obstacle("taylor_attention_step", inputs, state, {"K": 16, "V": 64, **changed})

    assert said([OnAGpu()], [OnAGpu(torch.float8_e5m2)]) is None
    assert said([OnAGpu()], K=33) == "got K = 33, and its kernel takes K from 1 to 32"
    assert said([OnAGpu()], [OnAGpu(contiguous=False)]) == (
        "got a state that is not contiguous, and its kernel updates it in place"
    )
    assert said([OnAGpu(requires_grad=True)]) == "got a tensor that requires a gradient, and its kernel has none"
