"""The short causal depthwise convolution that many mixers begin with."""

import torch
from torch import Tensor, nn

from kernels.short_conv import short_conv, short_conv_step


class ShortConvolution(nn.Conv1d):
    """A depthwise convolution over the last k positions, whose state is the k - 1 inputs before the next.

    `weight` [D, 1, k] and `bias` [D] are those of `nn.Conv1d`, as reference checkpoints store them.
    """

    def __init__(self, channels: int, kernel_size: int, bias: bool = False):
        super().__init__(channels, channels, kernel_size, groups=channels, bias=bias)

    def init_state(self, batch_size: int, *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """No input yet: zeros [B, k - 1, D]."""
        return torch.zeros(batch_size, self.kernel_size[0] - 1, self.in_channels, dtype=dtype, device=device)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, *, silu: bool = False, gated: bool = False
    ) -> Tensor:
        """[B, N, D] -> [B, N, D] from an empty past."""
        return short_conv(x, self.weight, self.bias, None, silu=silu, gated=gated)[0]

    def prefill(self, x: Tensor, state: Tensor, *, silu: bool = False, gated: bool = False) -> tuple[Tensor, Tensor]:
        """[B, N, D] after `state` [B, k - 1, D] -> outputs [B, N, D], as `short_conv` says, and new state."""
        return short_conv(x, self.weight, self.bias, state, silu=silu, gated=gated)

    def step(self, x: Tensor, state: Tensor, *, silu: bool = False, gated: bool = False) -> tuple[Tensor, Tensor]:
        """[B, D] after `state` [B, k - 1, D] -> output [B, D], new state."""
        return short_conv_step(x, self.weight, self.bias, state, silu=silu, gated=gated)

    def state_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of state a sequence."""
        return (self.kernel_size[0] - 1) * self.in_channels * dtype.itemsize
