"""Short causal depthwise convolution: y_t = sum over i < k of w_i x_{t - k + 1 + i}, with k - 1 inputs as its state.

Mixers pass its output through silu and multiply it by a gate, which here belong to it, as they do on the chip. A gate
lies behind what is convolved in one tensor, as projections make them, and so do then their gradients.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import Backend, takes_triton
from kernels.long_conv import long_conv
from kernels.short_conv_triton import fused_short_conv, fused_short_conv_step
from kernels.storage import stored

MAX_SHIFTS = 8
"""Up to this k a sum of shifted products, which a compiler joins with its neighbours.

Above it the library's routine, or on a GPU, where that is slow, the long convolution.
"""


def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    *,
    silu: bool = False,
    gated: bool = False,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """The parallel form.

    **Arguments:** `x` [B, N, D]; `weight` [D, 1, k]; `bias` [D]; `past` [B, k - 1, D], the inputs before `x`, zeros if
    None; `silu`: apply x sigmoid(x) to the output; `gated`: `x` is [B, N, 2 D], and its second half multiplies the
    output of the first, last; `backend`: as `kernels.backend` says.
    **Returns** outputs [B, N, D] and the last k - 1 inputs [B, k - 1, D] in the dtype of `past`.
    """
    if _takes_triton("short_conv", x, weight, bias, past, backend):
        return fused_short_conv(x, weight, bias, past, silu, gated)
    x, gate = _halves(x, gated)
    (B, N, D), k = x.shape, weight.shape[2]
    past = x.new_zeros(B, k - 1, D) if past is None else past
    if N == 0:
        return x, past
    inputs = torch.cat([past.to(x.dtype), x], dim=1)  # [B, k - 1 + N, D]
    if k <= MAX_SHIFTS:
        y = inputs[:, :N] * weight[:, 0, 0]
        for i in range(1, k):
            y = y + inputs[:, i : i + N] * weight[:, 0, i]
        y = (y if bias is None else y + bias).to(x.dtype)
    elif x.is_cuda:
        y = long_conv(inputs, weight[:, 0].flip(-1).T)[:, k - 1 :]
        y = y if bias is None else y + bias
    else:
        y = F.conv1d(inputs.transpose(1, 2), weight, bias, groups=D).transpose(1, 2)
    return _activated(y, silu, gate), stored(inputs[:, N:], past.dtype, copy=True)


def short_conv_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor,
    *,
    silu: bool = False,
    gated: bool = False,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrent form: `x` [B, D], or [B, 2 D] if gated -> [B, D].

    Triton writes the new `past` in the place of the old one.
    """
    if _takes_triton("short_conv_step", x, weight, bias, past, backend):
        return fused_short_conv_step(x, weight, bias, past, silu, gated), past
    x, gate = _halves(x, gated)
    inputs = torch.cat([past.to(x.dtype), x.unsqueeze(1)], dim=1)  # [B, k, D]
    y = torch.einsum("bkd,dk->bd", inputs, weight.squeeze(1))
    y = y if bias is None else y + bias
    return _activated(y, silu, gate), stored(inputs[:, 1:], past.dtype, copy=True)


def _halves(x: Tensor, gated: bool) -> tuple[Tensor, Tensor | None]:
    x, gate = x.chunk(2, -1) if gated else (x, None)
    return x, gate


def _activated(y: Tensor, silu: bool, gate: Tensor | None) -> Tensor:
    y = F.silu(y) if silu else y
    return y if gate is None else y * gate


def _takes_triton(
    kernel: str, x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor | None, backend: Backend | None
) -> bool:
    inputs = [t for t in (x, weight, bias) if t is not None]
    return takes_triton(kernel, backend, inputs, () if past is None else (past,), k=weight.shape[-1])
