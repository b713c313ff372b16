"""A Triton kernel for a decode step of the selective scan, which reads and writes the state once, in place.

A state element takes an exponential, 6 operations, and its bytes twice; beside them are x, dt and y, one element each
for S of the state, and A [E, S], which all sequences share and the cache holds. So it is bound by the state's bytes.
"""

# Triton has no types for launches.
# pyright: reportArgumentType=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.selective_scan_triton import check

STATES = 2048
"""State elements of a program, 16 a thread."""


@triton.jit
def _step(
    x_ptr, dt_ptr, a_ptr, b_ptr, c_ptr, h_ptr, y_ptr, E, S, xb, db, bb, cb, hb, he, hs,
    BE: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """One token, BE channels of one sequence."""
    row = tl.program_id(0).to(tl.int64)
    e, s = tl.program_id(1) * BE + tl.arange(0, BE), tl.arange(0, BS)
    inside = (e < E)[:, None] & (s < S)[None, :]
    x = tl.load(x_ptr + row * xb + e, mask=e < E, other=0.0).to(tl.float32)
    dt = tl.load(dt_ptr + row * db + e, mask=e < E, other=0.0).to(tl.float32)
    a = tl.load(a_ptr + e[:, None] * S + s[None, :], mask=inside, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + row * bb + s, mask=s < S, other=0.0).to(tl.float32)
    c = tl.load(c_ptr + row * cb + s, mask=s < S, other=0.0).to(tl.float32)
    at = h_ptr + row * hb + e[:, None] * he + s[None, :] * hs
    h = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    h = tl.exp(dt[:, None] * a) * h + (dt * x)[:, None] * b[None, :]
    tl.store(at, h.to(h_ptr.dtype.element_ty), mask=inside)
    y = tl.sum(h * c[None, :], 1)
    tl.store(y_ptr + row * E + e, y.to(y_ptr.dtype.element_ty), mask=e < E)


@torch.library.custom_op("recallbench::selective_scan_step", mutates_args={"state"})
def _decode(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> Tensor:
    (b, E), S = x.shape, A.shape[1]
    x, dt, B, C = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, dt, B, C))
    y = x.new_empty(b, E)
    BS = triton.next_power_of_2(S)
    BE = max(1, STATES // BS)
    with torch.cuda.device_of(x):
        _step[(b, triton.cdiv(E, BE))](
            x, dt, A.contiguous(), B, C, state, y, E, S,
            x.stride(0), dt.stride(0), B.stride(0), C.stride(0), *state.stride(), BE, BS, num_warps=4,
        )  # fmt: skip
    return y


@_decode.register_fake
def _(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def fused_selective_scan_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> Tensor:
    """`kernels.selective_scan.selective_scan_step` on a GPU: the output, `state` of any strides updated in place.

    **Raises** `ValueError` where shapes or devices do not fit together.
    """
    check(x.unsqueeze(1), dt.unsqueeze(1), A, B.unsqueeze(1), C.unsqueeze(1), state)
    return _decode(x, dt, A, B, C, state)
