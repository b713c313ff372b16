"""Causal softmax attention, y_t = sum over s <= t of softmax(q_t . k_s / sqrt(K)) v_s, as torch has it.

Source: Dao et al. 2022, arXiv 2205.14135, whose kernels `scaled_dot_product_attention` calls.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels.attention_step_triton import fused_attention_step
from kernels.backend import Backend, takes_triton
from kernels.sliding_window_prefill_triton import fused_sliding_window
from kernels.storage import stored

SHORT = 128
"""Up to this N a GPU is sooner done with the kernels of a window that reaches over all positions than with torch's."""


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`q`, `k`, `v` [B, H, N, K] -> [B, H, N, K]."""
    N, K = q.shape[-2:]
    if q.dtype != torch.float32 and N <= SHORT and takes_triton("sliding_window", None, (q, k, v), K=K, V=K):
        return fused_sliding_window(q, k, v, N, None)
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


def attention_step(
    q: Tensor, k: Tensor, v: Tensor, cache_k: Tensor, cache_v: Tensor, length: Tensor, backend: Backend | None = None
) -> Tensor:
    """The recurrent form, one token: its key and value go into slot `length` of the caches, it attends to all up to it.

    **Arguments:** `q` [B, H, K]; `k` [B, G, K] and `v` [B, G, V], each for H / G heads; `cache_k` [B, G, C, K] and
    `cache_v` [B, G, C, V], updated in place; `length` [B], the slots that are full, fewer than C, left as it is.
    **Returns** [B, H, V].
    """
    if takes_triton("attention_step", backend, (q, k, v), (cache_k, cache_v), K=k.shape[-1], V=v.shape[-1]):
        return fused_attention_step(q, k, v, cache_k, cache_v, length)
    rows = torch.arange(len(q), device=q.device)
    cache_k[rows, :, length], cache_v[rows, :, length] = stored(k, cache_k.dtype), stored(v, cache_v.dtype)
    visible = torch.arange(cache_k.shape[2], device=q.device) <= length[:, None]  # [B, C]
    keys, values = (t.to(q.dtype).repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (cache_k, cache_v))
    return masked_attention(q.unsqueeze(2), keys, values, visible[:, None, None]).squeeze(2)
