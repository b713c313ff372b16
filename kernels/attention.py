"""Causal softmax attention, y_t = sum over s <= t of softmax(q_t . k_s / sqrt(K)) v_s, as torch has it.

Source: Dao et al. 2022, arXiv 2205.14135, whose kernels `scaled_dot_product_attention` calls.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`q`, `k`, `v` [B, H, N, K] -> [B, H, N, K]."""
    if q.is_cuda and q.dtype == torch.float32 and q.shape[-1] % 4 == 0:
        # Under vmap `scaled_dot_product_attention` sees no gradient wanted, does not keep the log-sum-exp of the
        # scores, and its backward fails; asked for by name, the kernel it would choose keeps it.
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, True)[0]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)
