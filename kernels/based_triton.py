"""A Triton kernel for a decode step of Based: its linear attention and its window in one launch, both in place.

Half of the programs take a head of the linear attention each, the other half one of the window. A token and head take
the bytes and operations of both (`kernels/taylor_step_triton.py`, `kernels/sliding_window_triton.py`): with bfloat16
states at K = 16, V = 64 and W = 64, 39,780 and 16,640 bytes. The window's programs come second, so that they fill the
processors while the last of the others run out.
"""

# Triton has no types for launches.
# pyright: reportArgumentType=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import sliding_window_triton, taylor_step_triton
from kernels.sliding_window_triton import widths, window_step
from kernels.taylor_step_triton import BLOCK, factors, taylor_step
from kernels.taylor_sums_triton import by_rows


@triton.jit
def _step(
    q_ptr, k_ptr, v_ptr, table_ptr, weight_ptr, S_ptr, z_ptr, far_ptr,
    window_q_ptr, window_k_ptr, window_v_ptr, ring_k_ptr, ring_v_ptr, length_ptr, near_ptr,
    sequences, H, V, F, qb, qh, kb, kh, vb, vh, eps,
    window_H, G, W, scale, wqb, wqh, wkb, wkh, wvb, wvh,
    K: tl.constexpr, BV: tl.constexpr, BF: tl.constexpr, BZ: tl.constexpr,
    WK: tl.constexpr, BWK: tl.constexpr, WV: tl.constexpr, BWV: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    if program < sequences:
        taylor_step(
            q_ptr, k_ptr, v_ptr, table_ptr, weight_ptr, S_ptr, z_ptr, far_ptr,
            program, H, V, F, qb, qh, kb, kh, vb, vh, eps, K, BV, BF, BZ,
        )  # fmt: skip
    else:
        row = program - sequences
        window_step(
            window_q_ptr, window_k_ptr, window_v_ptr, ring_k_ptr, ring_v_ptr, length_ptr, near_ptr,
            row // window_H, row % window_H, window_H, G, W, scale, wqb, wqh, wkb, wkh, wvb, wvh,
            WK, BWK, WV, BWV, BW,
        )  # fmt: skip


@torch.library.custom_op("recallbench::based_step", mutates_args={"S", "z", "ring_k", "ring_v"})
def _decode(
    q: Tensor, k: Tensor, v: Tensor, S: Tensor, z: Tensor, eps: float,
    window_q: Tensor, window_k: Tensor, window_v: Tensor, ring_k: Tensor, ring_v: Tensor, length: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    q, k, v, window_q, window_k, window_v = by_rows(q, k, v, window_q, window_k, window_v)
    (B, H, K), V = q.shape, v.shape[-1]
    (_, window_H, WK), (_, W, G, WV) = window_q.shape, ring_v.shape
    table, weight = factors(K, q.device)
    far, near = v.new_empty(B, H, V), window_q.new_empty(B, window_H, WV)
    with torch.cuda.device_of(q):
        _step[(B * (H + window_H),)](
            q, k, v, table, weight, S, z, far, window_q, window_k, window_v, ring_k, ring_v, length, near,
            B * H, H, V, len(weight), *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], eps,
            window_H, G, W, WK**-0.5, *window_q.stride()[:2], *window_k.stride()[:2], *window_v.stride()[:2],
            K, triton.next_power_of_2(V), BLOCK, max(BLOCK, triton.next_power_of_2(len(weight))),
            *widths(WK, WV), sliding_window_triton.BLOCK, num_warps=sliding_window_triton.WARPS,
        )  # fmt: skip
    return far, near


@_decode.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, S: Tensor, z: Tensor, eps: float,
    window_q: Tensor, window_k: Tensor, window_v: Tensor, ring_k: Tensor, ring_v: Tensor, length: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return v.new_empty(v.shape), window_q.new_empty(*window_q.shape[:2], ring_v.shape[-1])


def fused_based_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    S: Tensor,
    z: Tensor,
    eps: float,
    window: tuple[Tensor, Tensor, Tensor],
    ring_k: Tensor,
    ring_v: Tensor,
    length: Tensor,
) -> tuple[Tensor, Tensor]:
    """`kernels.based.based_step` on a GPU: both outputs, the states but for `length` updated in place.

    **Raises** `ValueError` where shapes, dtypes or devices do not fit together.
    """
    taylor_step_triton.check(q.unsqueeze(2), k.unsqueeze(2), v.unsqueeze(2), S, z)
    sliding_window_triton.check("based_step", *window, ring_k, ring_v, length)
    return _decode(q, k, v, S, z, eps, *window, ring_k, ring_v, length)
