"""The gated short convolution of Based: y = W_o (silu(conv(W_1 x)) * W_2 x).

Source: Arora et al. 2024, arXiv 2402.18668, appendix on the gated convolution layers; BaseConv of Arora et al. 2023,
arXiv 2312.04927, section 4. It compares neighbours, which recall needs, and recalls nothing further back by itself.
"""

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from models.convolution import ShortConvolution
from models.mixer import Mixer
from models.settings import SettingError


class ShortConv(Mixer):
    """A gated depthwise convolution over the last `kernel_size` positions.

    **Arguments:** `kernel_size` k; `expand`: width of the input projection in multiples of D, half of it convolved
    and half of it gate; `bias`: of the two projections.
    """

    def __init__(self, d_model: PositiveInt, kernel_size: PositiveInt = 3, expand: PositiveInt = 2, bias: bool = True):
        super().__init__()
        if expand * d_model % 2:
            raise SettingError("expand", expand, f"expand * d_model = {expand * d_model} must be even")
        self.d_model = d_model
        self.in_proj = nn.Linear(d_model, expand * d_model, bias=bias)
        self.conv = ShortConvolution(expand * d_model // 2, kernel_size)
        self.out_proj = nn.Linear(expand * d_model // 2, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(self.conv(self.in_proj(x), silu=True, gated=True))

    def init_state(self, batch_size, *, max_length=None, dtype=None, device=None) -> Tensor:
        return self.conv.init_state(batch_size, **self.like_parameters(dtype, device))

    def prefill(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.conv.prefill(self.in_proj(x), state, silu=True, gated=True)
        return self.out_proj(y), state

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.conv.step(self.in_proj(x), state, silu=True, gated=True)
        return self.out_proj(y), state

    def state_bytes(self, length: int, dtype: torch.dtype) -> int:
        return self.conv.state_bytes(dtype)
