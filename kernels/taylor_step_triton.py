"""A Triton kernel for a decode step of Taylor linear attention, which reads and writes the state once, in place.

A token and head take 4 F V operations, and twice the F (V + 1) elements of S and z: in float32 at K = 16 and V = 64
79,560 bytes, at half an operation a byte. So it is bound by the bytes; and as nothing is kept but a block of features
and z, registers set no limit to K. The state may be in float32, bfloat16, float16 or 8 bits; sums are in float32, and
what 8 bits cannot hold becomes the largest that they can.
"""

# Triton has no types for launches, nor for functions of kernels that return several tensors.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linear_attention import LinearAttentionState
from kernels.taylor_features import features
from kernels.taylor_sums_triton import by_rows, check

BLOCK, WARPS = 32, 2
"""Features at a time, and the warps of a program, of which so many run at once that enough bytes are under way."""


@triton.jit
def _features(q_ptr, k_ptr, table_ptr, weight_ptr, f, F, K: tl.constexpr):
    """phi(q) and phi(k), of each the features f, in float32: products of two elements, or of one and 1."""
    left = tl.load(table_ptr + f, mask=f < F, other=K)
    right = tl.load(table_ptr + F + f, mask=f < F, other=K)
    weight = tl.load(weight_ptr + f, mask=f < F, other=0.0)
    phi_q = tl.load(q_ptr + left, mask=left < K, other=1.0).to(tl.float32) * weight
    phi_q *= tl.load(q_ptr + right, mask=right < K, other=1.0).to(tl.float32)
    phi_k = tl.load(k_ptr + left, mask=left < K, other=1.0).to(tl.float32) * weight
    phi_k *= tl.load(k_ptr + right, mask=right < K, other=1.0).to(tl.float32)
    return phi_q, phi_k


@triton.jit
def taylor_step(
    q_ptr, k_ptr, v_ptr, table_ptr, weight_ptr, S_ptr, z_ptr, y_ptr,
    sequence, H, V, F, qb, qh, kb, kh, vb, vh, eps,
    K: tl.constexpr, BV: tl.constexpr, BF: tl.constexpr, BZ: tl.constexpr,
):  # fmt: skip
    """One token of one head: S and z read once and written once, in place, S by BF features at a time."""
    b, h = sequence // H, sequence % H
    v = tl.arange(0, BV)
    q_ptr += b * qb + h * qh
    k_ptr += b * kb + h * kh
    value = tl.load(v_ptr + b * vb + h * vh + v, mask=v < V, other=0.0).to(tl.float32)
    S_ptr += sequence * F * V
    z_ptr += sequence * F
    f = tl.arange(0, BF)
    at, inside = f[:, None] * V + v[None, :], (f < F)[:, None] & (v < V)[None, :]
    ahead = tl.load(S_ptr + at, mask=inside, other=0.0)

    all_f = tl.arange(0, BZ)
    all_q, all_k = _features(q_ptr, k_ptr, table_ptr, weight_ptr, all_f, F, K)
    z = tl.load(z_ptr + all_f, mask=all_f < F, other=0.0).to(tl.float32) + all_k
    den = tl.sum(all_q * z, 0) + eps
    tl.debug_barrier()  # an element may be held by several threads: none writes before all have read
    tl.store(z_ptr + all_f, z.to(z_ptr.dtype.element_ty), mask=all_f < F)

    num = tl.zeros([BF, BV], tl.float32)
    for first in range(0, F, BF):
        f = first + tl.arange(0, BF)
        at, inside = f[:, None] * V + v[None, :], (f < F)[:, None] & (v < V)[None, :]
        phi_q, phi_k = tl.gather(all_q, f, 0), tl.gather(all_k, f, 0)
        S = ahead.to(tl.float32) + phi_k[:, None] * value[None, :]
        num += phi_q[:, None] * S
        ahead = tl.load(S_ptr + at + BF * V, mask=(f + BF < F)[:, None] & (v < V)[None, :], other=0.0)
        if BV < 16:  # as above
            tl.debug_barrier()
        tl.store(S_ptr + at, S.to(S_ptr.dtype.element_ty), mask=inside)
    tl.store(y_ptr + sequence * V + v, (tl.sum(num, 0) / den).to(y_ptr.dtype.element_ty), mask=v < V)


@triton.jit
def _step(
    q_ptr, k_ptr, v_ptr, table_ptr, weight_ptr, S_ptr, z_ptr, y_ptr,
    H, V, F, qb, qh, kb, kh, vb, vh, eps,
    K: tl.constexpr, BV: tl.constexpr, BF: tl.constexpr, BZ: tl.constexpr,
):  # fmt: skip
    taylor_step(
        q_ptr, k_ptr, v_ptr, table_ptr, weight_ptr, S_ptr, z_ptr, y_ptr,
        tl.program_id(0).to(tl.int64), H, V, F, qb, qh, kb, kh, vb, vh, eps, K, BV, BF, BZ,
    )  # fmt: skip


@cache
def factors(K: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which two inputs a feature is the product of [2, F], and its weight [F].

    Asked for within operations, so that neither a compiler nor a CUDA graph sees them made.
    """
    left, right, weight = features(K)
    return torch.stack([left, right]).int().to(device), weight.float().to(device)


@torch.library.custom_op("recallbench::taylor_attention_step", mutates_args={"S", "z"})
def _decode(q: Tensor, k: Tensor, v: Tensor, S: Tensor, z: Tensor, eps: float) -> Tensor:
    q, k, v = by_rows(q, k, v)
    (B, H, K), V = q.shape, v.shape[-1]
    table, weight = factors(K, q.device)
    y = v.new_empty(B, H, V)
    with torch.cuda.device_of(q):
        _step[(B * H,)](
            q, k, v, table, weight, S, z, y, H, V, len(weight), *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], eps,
            K, triton.next_power_of_2(V), BLOCK, max(BLOCK, triton.next_power_of_2(len(weight))), num_warps=WARPS,
        )  # fmt: skip
    return y


@_decode.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, S: Tensor, z: Tensor, eps: float) -> Tensor:
    return v.new_empty(v.shape)


def fused_taylor_step(q: Tensor, k: Tensor, v: Tensor, state: LinearAttentionState, eps: float) -> Tensor:
    """`kernels.taylor_attention.taylor_attention_step` on a GPU: the output, the state updated in place.

    **Raises** `ValueError` where shapes, dtypes or devices do not fit together, or the state is not contiguous.
    """
    check(q.unsqueeze(2), k.unsqueeze(2), v.unsqueeze(2), *state)
    return _decode(q, k, v, *state, eps)
