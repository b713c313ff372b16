"""Every Triton kernel becomes machine code of an H100, with the arguments that it is launched with, on any machine.

The interpreter runs what the compiler may refuse, and cannot multiply in bfloat16; this asks the compiler.
"""

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from kernels.cross_entropy_triton import fused_answers, fused_cross_entropy
from kernels.linear_attention import LinearAttentionState
from kernels.selective_scan_triton import fused_selective_scan
from kernels.sliding_window_triton import fused_window_step
from kernels.taylor_attention import taylor_attention, taylor_attention_step
from kernels.taylor_features import features

HOPPER = GPUTarget("cuda", 90, 32)
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.float16: "fp16", torch.int32: "i32", torch.int64: "i64"}
OPTIONS = {"num_warps", "num_stages"}


@pytest.fixture
def compiled(monkeypatch):
    """Launches compile and do nothing else; the names of the kernels launched."""
    found = []

    def compile_only(kernel, *positional, grid, warmup, **named):
        arguments = dict(zip(kernel.arg_names, positional, strict=False)) | named
        options = {name: arguments.pop(name) for name in OPTIONS & arguments.keys()}
        fixed = {p.name for p in kernel.params if p.is_constexpr}
        signature, constants, attributes = {}, {}, {}
        for place, name in enumerate(kernel.arg_names):
            value = arguments[name]
            if name in fixed or value is None:
                signature[name], constants[(place,)] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[name], attributes[(place,)] = f"*{NAMES[value.dtype]}", [["tt.divisibility", 16]]
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32"
        made = triton.compile(ASTSource(kernel, signature, constants, attributes), target=HOPPER, options=options)
        assert made.metadata.shared <= 227 * 1024  # what a program may have
        assert len(made.asm["cubin"]) > 0
        found.append(kernel.fn.__name__)

    monkeypatch.setattr(JITFunction, "run", compile_only)
    return found


def tensors(*shapes, dtype=torch.bfloat16):
    return [torch.zeros(shape, dtype=dtype).requires_grad_() for shape in shapes]


def both_ways(call, inputs):
    """Forward and, by all outputs that have a gradient, backward."""
    outputs = [t for t in call(*inputs) if t.requires_grad]
    torch.autograd.grad(outputs, inputs, [torch.zeros_like(t) for t in outputs], allow_unused=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU itself")
def test_taylor_attention(compiled):
    K = 16
    F = len(features(K).weight)
    q, k, v = tensors((1, 2, 300, K), (1, 2, 300, K), (1, 2, 300, 64))
    S, z = tensors((1, 2, F, 64), (1, 2, F), dtype=torch.float32)

    def attend(q, k, v, S, z):
        y, state = taylor_attention(q, k, v, LinearAttentionState(S, z), backend="triton")
        return y, *state

    both_ways(attend, [q, k, v, S, z])
    one = [t.detach()[:, :, 0] for t in (q, k, v)]
    for dtype in (torch.float32, torch.bfloat16):
        state = LinearAttentionState(S.detach().to(dtype), z.detach().to(dtype))
        taylor_attention_step(*one, state, backend="triton")
    prefill = ["_segment_sums", "_forward"]
    assert compiled == [
        *prefill,
        "_by_numerator",
        "_segment_sums",
        "_queries_backward",
        "_keys_backward",
        *2 * ["_step"],
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU itself")
@pytest.mark.parametrize(("R", "D"), [(100, 64), (16384, 128)])
def test_cross_entropy(R, D, compiled):
    x, weight = tensors((R, D), (8192, D))
    targets = torch.zeros(R, dtype=torch.int64)
    both_ways(lambda *t: (fused_cross_entropy(*t, targets),), [x, weight])
    fused_answers(x, weight, targets)
    assert compiled == ["_partial", "_merge", "_weight_gradient", "_partial", "_merge"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU itself")
def test_selective_scan(compiled):
    S = 16
    x, dt, B, C = tensors((2, 100, 256), (2, 100, 256), (2, 100, S), (2, 100, S))
    A, state = tensors((256, S), (2, 256, S), dtype=torch.float32)
    both_ways(fused_selective_scan, [x, dt, A, B, C, state])
    assert compiled == ["_forward", "_backward"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU itself")
def test_sliding_window_step(compiled):
    width = 112
    q, k, v = tensors((2, 4, width), (2, 2, width), (2, 2, width))
    rings = tensors((2, 64, 2, width), (2, 64, 2, width))
    fused_window_step(*(t.detach() for t in (q, k, v, *rings)), torch.zeros(2, dtype=torch.int64))
    assert compiled == ["_step"]
