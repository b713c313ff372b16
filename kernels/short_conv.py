"""Short causal depthwise convolution: y_t = sum over i < k of w_i x_{t - k + 1 + i}, with k - 1 inputs as its state."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.long_conv import long_conv

MAX_SHIFTS = 8
"""Up to this k a sum of shifted products, which a compiler joins with its neighbours.

Above it the library's routine, or on a GPU, where that is slow, the long convolution.
"""


def short_conv(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor) -> tuple[Tensor, Tensor]:
    """The parallel form.

    **Arguments:** `x` [B, N, D]; `weight` [D, 1, k]; `bias` [D]; `past` [B, k - 1, D], the inputs before `x`.
    **Returns** outputs [B, N, D] and the last k - 1 inputs [B, k - 1, D] in the dtype of `past`.
    """
    if x.shape[1] == 0:
        return x, past
    N, k = x.shape[1], weight.shape[2]
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
        y = F.conv1d(inputs.transpose(1, 2), weight, bias, groups=x.shape[2]).transpose(1, 2)
    return y, inputs[:, N:].to(past.dtype, copy=True)


def short_conv_step(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrent form: `x` [B, D] -> [B, D]."""
    inputs = torch.cat([past.to(x.dtype), x.unsqueeze(1)], dim=1)  # [B, k, D]
    y = torch.einsum("bkd,dk->bd", inputs, weight.squeeze(1))
    return y if bias is None else y + bias, inputs[:, 1:].to(past.dtype, copy=True)
