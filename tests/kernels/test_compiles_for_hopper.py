"""Every Triton kernel becomes machine code of an H100, with the arguments that it is launched with, on any machine.

The interpreter runs what the compiler may refuse, and cannot multiply in bfloat16; this asks the compiler.
"""

import re
import subprocess
from pathlib import Path

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from kernels import backend
from kernels.attention import attention_step
from kernels.based import BasedState, based_step
from kernels.cross_entropy_chunks_triton import chunked_answers, chunked_cross_entropy
from kernels.cross_entropy_triton import fused_answers, fused_cross_entropy
from kernels.decay_attention import decay_linear_attention
from kernels.linear_attention import LinearAttentionState
from kernels.selective_scan import selective_scan, selective_scan_step
from kernels.short_conv import short_conv, short_conv_step
from kernels.sliding_window import RingBuffer, sliding_window_attention, sliding_window_step
from kernels.taylor_attention import taylor_attention, taylor_attention_step
from kernels.taylor_features import feature_count
from kernels.unit_triangular import unit_triangular_solve

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU itself")

HOPPER = GPUTarget("cuda", 90, 32)
NAMES = {
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e5m2: "fp8e5",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
OPTIONS = {"num_warps", "num_stages", "maxnreg"}


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Launches compile and do nothing else; for each kernel launched, the bytes a thread keeps out of registers."""
    found = {}

    def compile_only(kernel, *positional, grid, warmup, **named):
        arguments = dict(zip(kernel.arg_names, positional, strict=False)) | named
        options = {name: arguments.pop(name) for name in OPTIONS & arguments.keys()}
        fixed = {p.name for p in kernel.params if p.is_constexpr}
        signature, constants, attributes = {}, {}, {}
        for place, name in enumerate(kernel.arg_names):
            value = arguments[name]
            if name in fixed or value is None or (isinstance(value, int) and value == 1):
                signature[name], constants[(place,)] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[name], attributes[(place,)] = f"*{NAMES[value.dtype]}", [["tt.divisibility", 16]]
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32"
                if isinstance(value, int) and value % 16 == 0:
                    attributes[(place,)] = [["tt.divisibility", 16]]
        made = triton.compile(ASTSource(kernel, signature, constants, attributes), target=HOPPER, options=options)
        assert made.metadata.shared <= 227 * 1024  # what a program may have
        assert len(made.asm["cubin"]) > 0
        code = tmp_path / "kernel.cubin"
        code.write_bytes(made.asm["cubin"])
        use = subprocess.run([CUOBJDUMP, "--dump-resource-usage", code], capture_output=True, text=True, check=True)
        (stack,) = re.findall(r"STACK:(\d+)", use.stdout)
        found[kernel.fn.__name__] = max(int(stack), found.get(kernel.fn.__name__, 0))

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(backend, "_runs_on", lambda device: True)
    return found


def tensors(*shapes, dtype=torch.bfloat16):
    return [torch.zeros(shape, dtype=dtype).requires_grad_() for shape in shapes]


def both_ways(call, inputs):
    """Forward and, by all outputs that have a gradient, backward."""
    outputs = [t for t in call(*inputs) if t.requires_grad]
    torch.autograd.grad(outputs, inputs, [torch.zeros_like(t) for t in outputs], allow_unused=True)


@pytest.mark.parametrize(("K", "V"), [(5, 48), (16, 64), (24, 64), (32, 128)])
def test_taylor_attention(K, V, compiled):
    """In bfloat16 no more is kept out of registers than fits eight of them."""
    for B in (1, 256):  # many segments, and one
        shapes = [(B, 2, 600, K), (B, 2, 600, K), (B, 2, 600, V)]
        both_ways(lambda *t: taylor_attention(*t, backend="triton")[:1], tensors(*shapes))
    kernels = {"sum_chunks", "add_segments", "_outputs", "_by_numerator", "_queries_backward", "_keys_backward"}
    assert compiled.keys() == kernels
    assert max(compiled.values()) <= 8 * 4


@pytest.mark.parametrize("C", [16, 32])
def test_unit_triangular_solve(C, compiled):
    both_ways(
        lambda *t: (unit_triangular_solve(*t, backend="triton"),), tensors((4, C, C), (4, C, 96), dtype=torch.float32)
    )
    assert compiled == {"_solve": 0}


@pytest.mark.parametrize("D", [64, 128, 256])
def test_cross_entropy(D, compiled):
    """No more is kept out of registers than fits four of them."""
    x, weight = tensors((16384, D), (8192, D))
    targets = torch.zeros(16384, dtype=torch.int64)
    both_ways(lambda *t: (fused_cross_entropy(*t, targets),), [x, weight])
    fused_answers(x, weight, targets)
    assert compiled.keys() == {"_partial", "_merge", "_weight_gradient"}
    assert max(compiled.values()) <= 4 * 4


def test_cross_entropy_of_wide_rows(compiled):
    x, weight = tensors((16, 512), (50257, 512))
    targets = torch.zeros(16, dtype=torch.int64)
    both_ways(lambda *t: (chunked_cross_entropy(*t, targets),), [x, weight])
    chunked_answers(x, weight, targets)
    assert compiled == {"_softmax": 0, "_logit_gradient": 0}


@pytest.mark.parametrize("S", [8, 16, 24, 64])
def test_selective_scan(S, compiled):
    """Three warps a scheduler are worth some states kept out of registers, where a thread has 16 of them."""
    x, dt, B, C = tensors((2, 100, 256), (2, 100, 256), (2, 100, S), (2, 100, S))
    A, state = tensors((256, S), (2, 256, S), dtype=torch.float32)
    both_ways(lambda *t: selective_scan(*t, backend="triton"), [x, dt, A, B, C, state])
    assert compiled.keys() == {"_forward", "_backward"}
    assert compiled["_forward"] == 0
    assert compiled["_backward"] <= (0 if S == 24 else 56 * 4)


@pytest.mark.parametrize(
    ("H", "G", "K", "V", "dtype"),
    [
        (2, 1, 8, 64, torch.bfloat16),
        (4, 1, 16, 64, torch.bfloat16),
        (8, 1, 24, 64, torch.bfloat16),
        (4, 4, 64, 128, torch.bfloat16),
        (4, 2, 128, 128, torch.bfloat16),
        (4, 1, 24, 64, torch.float32),
    ],
)
def test_decay_attention(H, G, K, V, dtype, compiled):
    """No more is kept out of registers than fits eight of them, and that only where a state is given or K is large."""
    for N in (16, 64, 256):
        joined = torch.zeros(2, N, H * V + 2 * G * K, dtype=dtype)
        v, k, q = joined.split([H * V, G * K, G * K], -1)
        inputs = [t.unflatten(-1, (-1, width)).transpose(1, 2) for t, width in ((q, K), (k, K), (v, V))]
        log_decay = torch.zeros(2, N, H).transpose(1, 2)
        inputs = [t.detach().requires_grad_() for t in (*inputs, log_decay)]
        both_ways(lambda *t: decay_linear_attention(*t, backend="triton")[:1], inputs)
    assert compiled.keys() == {"_forward", "_backward"}
    assert max(compiled.values()) <= (8 * 4 if K > 32 else 0)
    with torch.no_grad():  # as a prompt is read
        decay_linear_attention(*inputs, torch.zeros(2, H, K, V), backend="triton")
    assert compiled["_forward"] <= 8 * 4


@pytest.mark.parametrize(
    ("K", "V", "dtype", "has_past"),
    [
        (64, 64, torch.bfloat16, False),
        (64, 64, torch.bfloat16, True),
        (128, 128, torch.bfloat16, True),
        (61, 250, torch.bfloat16, True),
        (24, 24, torch.float32, True),
        (100, 128, torch.float32, False),
    ],
)
def test_sliding_window_needs_no_more_than_registers(K, V, dtype, has_past, compiled):
    W, N = 64, 2048
    T = N + has_past * (W - 1)
    q, k, v = tensors((1, 16, N, K), (1, 4, T, K), (1, 4, T, V), dtype=dtype)
    past = torch.ones(1, W - 1, dtype=torch.bool) if has_past else None
    both_ways(lambda *t: (sliding_window_attention(*t, W, past, "triton"),), [q, k, v])
    assert compiled == {"_forward": 0, "_queries_backward": 0, "_keys_backward": 0}


@pytest.mark.parametrize("k", [2, 4, 8])
@pytest.mark.parametrize(("dtype", "gated"), [(torch.bfloat16, True), (torch.bfloat16, False), (torch.float32, True)])
def test_short_convolution_needs_no_more_than_registers(k, dtype, gated, compiled):
    D = 288
    (x,), (weight, bias, past) = tensors((2, 100, D + gated * D), dtype=dtype), tensors((D, 1, k), (D,), (2, k - 1, D))
    both_ways(lambda x, *t: short_conv(x, *t, silu=True, gated=gated, backend="triton"), [x, weight, bias, past])
    x = x.detach().requires_grad_()
    both_ways(lambda x: short_conv(x, weight, None, None, silu=True, gated=gated, backend="triton"), [x])
    assert compiled == {"_prefill": 0, "_backward": 0}


def test_steps_need_no_more_than_registers(compiled):
    B, H, K, V, W, E, S = 2, 16, 16, 64, 64, 512, 16
    q, k, v, near, conv, x, dt, b, c, past = (
        t.detach()
        for t in tensors(
            (B, H, K), (B, H, K), (B, H, V), (B, H, V), (B, E), (B, E), (B, E), (B, S), (B, S), (B, 3, E)
        )
    )  # fmt: skip
    F = feature_count(K)
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        far = LinearAttentionState(torch.zeros(B, H, F, V, dtype=dtype), torch.zeros(B, H, F, dtype=dtype))
        taylor_attention_step(q, k, v, far, backend="triton")
    far = LinearAttentionState(*(t.bfloat16() for t in far))
    ring = RingBuffer(*(torch.zeros(B, W, H, V, dtype=torch.bfloat16) for _ in "kv"), torch.zeros(B, dtype=int))
    sliding_window_step(near, near, near, ring, backend="triton")
    for width in (70, V):  # rows of no whole number of 16 bytes, and of one
        heads, cache = (torch.zeros(*shape, width, dtype=torch.bfloat16) for shape in ((B, H), (B, H, 2 * W)))
        attention_step(heads, heads, heads, cache, cache, ring.length, backend="triton")
    based_step((q, k, v), (near, near, near), BasedState(far, ring), backend="triton")
    weight, A = torch.zeros(E, 1, 4, dtype=torch.bfloat16), torch.zeros(E, S)
    short_conv(conv.unsqueeze(1), weight, None, past, silu=True, backend="triton")
    short_conv_step(conv, weight, weight[:, 0, 0].contiguous(), past, silu=True, backend="triton")
    for dtype in (torch.float32, torch.bfloat16):
        selective_scan_step(x, dt, A, b, c, torch.zeros(B, E, S, dtype=dtype), backend="triton")
    assert compiled == {"_step": 0, "_prefill": 0, "_spans": 0}
