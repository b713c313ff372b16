"""What the benchmark of the kernels measures: for each kernel its shapes, its implementations, and its least bytes.

Heads are those of the Based paper: H = 16, K = 16, V = 64, a window of W = 64 positions; its short convolutions have
4,096 channels and reach over 3 positions. A cache of attention has room for 2,048. The selective scan is that of Mamba
at the width 1,024: 2,048 channels of 16 states.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from kernels.attention import attention_step, masked_attention
from kernels.backend import Backend
from kernels.based import BasedState, based_step
from kernels.linear_attention import LinearAttentionState
from kernels.selective_scan import selective_scan_step
from kernels.short_conv import short_conv, short_conv_step
from kernels.sliding_window import RingBuffer, sliding_window_attention, sliding_window_step
from kernels.taylor_attention import taylor_attention, taylor_attention_step, taylor_outputs
from kernels.taylor_features import feature_count

H, K, V, W = 16, 16, 64, 64
ROOM = 2048
CHANNELS, SIZE = 4096, 3
E, S = 2048, 16

Call = Callable[[], Any]
Kernel = Literal[
    "prefill",
    "training",
    "step",
    "attention step",
    "window",
    "window step",
    "based step",
    "short conv",
    "short conv step",
    "scan step",
]


class Case(NamedTuple):
    """What is measured at one shape; of N tokens before it a step of attention alone takes account."""

    kernel: Kernel
    B: int
    N: int = 1
    state: torch.dtype = torch.bfloat16


PREFILLS = [(1, 2048), (1, 8192), (1, 16384), (4, 2048), (4, 8192), (4, 16384), (16, 1024), (16, 2048)]
STATES = (torch.float32, torch.bfloat16)
CASES = [
    *(Case("prefill", B, N) for B, N in PREFILLS),
    *(Case("training", 4, N) for N in (2048, 4096, 8192)),
    *(Case("step", B, state=dtype) for dtype in STATES for B in (1, 8, 128, 512)),
    *(Case("step", 128, state=dtype) for dtype in (torch.float8_e4m3fn, torch.float8_e5m2)),
    *(Case("attention step", B, N) for B in (1, 8, 128) for N in (ROOM // 2, ROOM - 1)),
    *(Case("window", B, N) for B, N in ((1, 16384), (4, 2048), (4, 8192), (16, 2048))),
    *(Case("window step", B) for B in (1, 128, 512)),
    *(Case("based step", B, state=dtype) for dtype in STATES for B in (1, 128, 512)),
    *(Case("short conv", B, N) for B, N in ((1, 16384), (4, 2048), (16, 2048))),
    *(Case("short conv step", B) for B in (1, 128, 512)),
    *(Case("scan step", B, state=dtype) for dtype in STATES for B in (1, 128, 512)),
]
TRIAL = [
    *(Case(kernel, 1, 100) for kernel in ("prefill", "training", "window", "short conv")),
    Case("attention step", 2, 100),
    *(Case(kernel, 2) for kernel in ("step", "window step", "based step", "short conv step", "scan step")),
]
"""For a CPU: that it runs."""


def ways(case: Case, device: torch.device) -> Iterator[tuple[str, Call]]:
    """Every implementation at hand, by name: ours, the reference, and those of others on a GPU."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    yield from _WAYS[case.kernel](case, lambda *shape, dtype=dtype: torch.randn(shape, device=device).to(dtype))


def floor_bytes(case: Case) -> int:
    """What must pass through memory: inputs, outputs and the state, each once; gradients and their inputs, too.

    Inputs and outputs are in two bytes an element, and so are rings and the inputs that a convolution keeps.
    """
    item, tokens, kept = 2, case.B * case.N * H, case.state.itemsize
    step = case.B * H * (2 * feature_count(K) * (V * kept + 4) + (2 * K + 2 * V) * item)  # z is wide
    window_step = case.B * H * (2 * W * V + 6 * V) * item
    return {
        "prefill": tokens * (2 * K + 2 * V) * item,
        # and then q, k, v, y and dy are read, dq, dk and dv written
        "training": tokens * (2 * K + 2 * V + 4 * K + 4 * V) * item,
        "step": step,
        "attention step": case.B * H * (2 * case.N * V + 6 * V) * item,
        "window": tokens * 4 * V * item,
        "window step": window_step,
        "based step": step + window_step,
        "short conv": case.B * case.N * CHANNELS * 3 * item,  # x, gate and y
        "short conv step": case.B * CHANNELS * (3 + 2 * (SIZE - 1)) * item,
        "scan step": case.B * E * (2 * S * kept + 2 * item + 4)
        + case.B * 2 * S * item
        + E * S * 4,  # dt and A are wide
    }[case.kernel]


Random = Callable[..., Tensor]
"""Shape, and a dtype where it is another than that of the inputs, -> a tensor."""


def _prefills(case: Case, random: Random) -> Iterator[tuple[str, Call]]:
    backward = case.kernel == "training"
    q, k, v = (random(case.B, case.N, H, width) for width in (K, K, V))
    for name, backend in _ours(q):
        attend = taylor_outputs if backward else taylor_attention  # a prompt leaves a state
        yield name, _taken(partial(attend, backend=backend), _by_head(q, k, v), backward)
    if not q.is_cuda:
        return
    wide = tuple(random(case.B, H, case.N, V) for _ in range(3))
    for name, kernel in (
        ("FlashAttention-2", SDPBackend.FLASH_ATTENTION),
        ("cuDNN attention", SDPBackend.CUDNN_ATTENTION),
    ):
        yield name, _taken(_attention(kernel), wide, backward)
    if importlib.util.find_spec("fla"):
        from fla.ops.based import fused_chunk_based, parallel_based  # noqa: PLC0415 - an extra

        yield "fla parallel_based", _taken(parallel_based, (q, k, v), backward)
        if not backward:
            yield "fla fused_chunk_based", _taken(fused_chunk_based, (q, k, v), backward)


def _steps(case: Case, random: Random) -> Iterator[tuple[str, Call]]:
    far, state = _far(case, random)
    for name, backend in _ours(far[0]):
        yield name, lambda of=backend: taylor_attention_step(*far, state, of)


def _attention_steps(case: Case, random: Random) -> Iterator[tuple[str, Call]]:
    q, k, v = (random(case.B, H, V) for _ in range(3))
    cache_k, cache_v = (random(case.B, H, ROOM, V) for _ in "kv")
    length = torch.full((case.B,), case.N, dtype=torch.int64, device=q.device)
    for name, backend in _ours(q):
        yield name, lambda of=backend: attention_step(q, k, v, cache_k, cache_v, length, of)
    if q.is_cuda:
        keys, values = (t[:, :, : case.N].contiguous() for t in (cache_k, cache_v))
        yield "SDPA, of a cache of no more room", lambda: F.scaled_dot_product_attention(q.unsqueeze(2), keys, values)


def _windows(case: Case, random: Random) -> Iterator[tuple[str, Call]]:
    q, k, v = _by_head(*(random(case.B, case.N, H, V) for _ in range(3)))
    for name, backend in _ours(q):
        yield name, lambda of=backend: sliding_window_attention(q, k, v, W, backend=of)
    if not q.is_cuda:
        return
    seen = create_block_mask(
        lambda b, h, i, j: (i >= j) & (i - j < W), None, None, case.N, case.N, device=str(q.device)
    )
    flex = torch.compile(flex_attention)
    yield "flex_attention", lambda: flex(q, k, v, block_mask=seen)
    yield "FlashAttention-2 of all positions", lambda: _attention(SDPBackend.FLASH_ATTENTION)(q, k, v)


def _window_steps(case: Case, random: Random) -> Iterator[tuple[str, Call]]:
    near, ring = _near(case, random)
    for name, backend in _ours(near[0]):
        yield name, lambda of=backend: sliding_window_step(*near, ring, of)
    visible = torch.ones(case.B, 1, 1, W, dtype=torch.bool, device=near[0].device)
    keys, values = _by_head(ring.k, ring.v)
    yield "attention over the ring alone", lambda: masked_attention(near[0].unsqueeze(2), keys, values, visible)


def _based_steps(case: Case, random: Random) -> Iterator[tuple[str, Call]]:
    (far, state), (near, ring) = _far(case, random), _near(case, random)
    for name, backend in _ours(far[0]):
        yield name, lambda of=backend: based_step(far, near, BasedState(state, ring), of)
    if far[0].is_cuda:
        yield "ours, in two launches", lambda: (taylor_attention_step(*far, state), sliding_window_step(*near, ring))


def _convolutions(case: Case, random: Random) -> Iterator[tuple[str, Call]]:
    x = random(case.B, case.N, 2 * CHANNELS)  # what is convolved, and its gate
    weight, past = random(CHANNELS, 1, SIZE), random(case.B, SIZE - 1, CHANNELS)
    for name, backend in _ours(x):
        yield name, lambda of=backend: short_conv(x, weight, None, past, silu=True, gated=True, backend=of)
    if x.is_cuda and importlib.util.find_spec("fla"):
        conv, filters = importlib.import_module("fla.modules.convolution").causal_conv1d, weight.squeeze(1)
        u, gate = x.chunk(2, -1)
        yield "fla causal_conv1d, and the gate", lambda: gate * conv(u, filters, activation="silu")[0]


def _convolution_steps(case: Case, random: Random) -> Iterator[tuple[str, Call]]:
    x = random(case.B, 2 * CHANNELS)
    weight, past = random(CHANNELS, 1, SIZE), random(case.B, SIZE - 1, CHANNELS)
    for name, backend in _ours(x):
        yield name, lambda of=backend: short_conv_step(x, weight, None, past, silu=True, gated=True, backend=of)
    if x.is_cuda and importlib.util.find_spec("fla"):
        update = importlib.import_module("fla.modules.convolution").causal_conv1d_update
        u, gate = x.chunk(2, -1)
        filters, cache = weight.squeeze(1), random(case.B, CHANNELS, SIZE)
        yield (
            "fla causal_conv1d_update, and the gate",
            lambda: gate * update(u, cache, weight=filters, activation="silu")[0],
        )


def _scan_steps(case: Case, random: Random) -> Iterator[tuple[str, Call]]:
    x, dt, B, C = random(case.B, E), random(case.B, E, dtype=torch.float32).abs(), *(random(case.B, S) for _ in "BC")
    A, state = -random(E, S, dtype=torch.float32).abs(), random(case.B, E, S, dtype=case.state)
    for name, backend in _ours(x):
        yield name, lambda of=backend: selective_scan_step(x, dt, A, B, C, state, of)


_WAYS: dict[Kernel, Callable[[Case, Random], Iterator[tuple[str, Call]]]] = {
    "prefill": _prefills,
    "training": _prefills,
    "step": _steps,
    "attention step": _attention_steps,
    "window": _windows,
    "window step": _window_steps,
    "based step": _based_steps,
    "short conv": _convolutions,
    "short conv step": _convolution_steps,
    "scan step": _scan_steps,
}


def _ours(like: Tensor) -> list[tuple[str, Backend]]:
    """The kernel, where there is a GPU, and the reference."""
    return [("ours", "triton"), ("reference", "reference")] if like.is_cuda else [("reference", "reference")]


def _far(case: Case, random: Random) -> tuple[tuple[Tensor, Tensor, Tensor], LinearAttentionState]:
    """Heads of linear attention, and a state of theirs."""
    q, k, v = (random(case.B, H, width) for width in (K, K, V))
    count = feature_count(K)
    z = random(case.B, H, count, dtype=torch.float32).abs()  # as mixers keep it, whatever the dtype of S
    return (q, k, v), LinearAttentionState(random(case.B, H, count, V, dtype=case.state), z)


def _near(case: Case, random: Random) -> tuple[tuple[Tensor, Tensor, Tensor], RingBuffer]:
    """Heads of a window, and a full ring of theirs."""
    q, k, v = (random(case.B, H, V) for _ in range(3))
    length = torch.full((case.B,), W, dtype=torch.int64, device=q.device)
    return (q, k, v), RingBuffer(random(case.B, W, H, V), random(case.B, W, H, V), length)


def _taken(attend: Callable[..., Any], inputs: tuple[Tensor, ...], backward: bool) -> Call:
    """Outputs alone, or with all gradients."""
    if not backward:
        return lambda: attend(*inputs)
    leaves = [t.detach().requires_grad_() for t in inputs]

    def both() -> None:
        y = attend(*leaves)
        torch.autograd.grad(y, leaves, torch.ones_like(y))

    return both


def _attention(backend: SDPBackend) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return attend


def _by_head(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.transpose(1, 2) for t in tensors)
