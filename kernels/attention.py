"""Causal softmax attention, y_t = sum over s <= t of softmax(q_t . k_s / sqrt(K)) v_s, as torch has it.

Source: Dao et al. 2022, arXiv 2205.14135, whose kernels `scaled_dot_product_attention` calls.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`q`, `k`, `v` [B, H, N, K] -> [B, H, N, K]."""
    if q.is_cuda and q.dtype == torch.float32 and q.shape[-1] % 4 == 0:
        # Under vmap `scaled_dot_product_attention` sees no gradient wanted, does not keep the log-sum-exp of the
        # scores, and its backward fails; asked for by name, the kernel it would choose keeps it.
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, True)[0]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Softmax attention of each query over the keys that it sees.

    **Arguments:** `q` [B, H, N, K]; `k` [B, H, P, K]; `v` [B, H, P, V]; `visible`, bool, broadcast to [B, H, N, P],
    with at least one True a query. **Returns** [B, H, N, V].
    """
    if not q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    # Not cuDNN's: with a mask, its bfloat16 kernels come to NaN where scores grow large (torch 2.11 on an H200).
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
