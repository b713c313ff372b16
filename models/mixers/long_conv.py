"""The gated long convolution of Zoology, BaseConv: y = (W x + b) * (h conv x).

Source: Arora et al. 2023, arXiv 2312.04927, section 4. Its inputs within reach of the filter are its state, so its
bytes grow with the sequence until the filter ends, if it ends.
"""

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from kernels.long_conv import long_conv, long_conv_step
from models.long_filter import ExplicitFilter, ImplicitFilter
from models.mixer import Mixer
from models.past_inputs import PastInputs, no_inputs, past_length, remember


class LongConv(Mixer):
    """A depthwise convolution as long as the sequence, gated by a projection of the input.

    **Arguments:** `filter_length` L: an explicit filter ends there, an implicit one measures positions in it;
    `implicit`: an MLP of the position instead of one parameter a lag, which never ends; its `filter_width`,
    `filter_bands` and `filter_frequency` as in `hyena`.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        filter_length: PositiveInt = 1024,
        implicit: bool = False,
        filter_width: PositiveInt = 16,
        filter_bands: PositiveInt = 1,
        filter_frequency: PositiveFloat = 1.0,
    ):
        super().__init__()
        self.d_model = d_model
        self.projection = nn.Linear(d_model, d_model)
        self.conv = (
            ImplicitFilter(d_model, filter_length, filter_width, filter_bands, filter_frequency)
            if implicit
            else ExplicitFilter(d_model, filter_length)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x) * long_conv(x, self.conv(x.shape[1]))

    def init_state(self, batch_size, *, max_length=None, dtype=None, device=None) -> PastInputs:
        return no_inputs(batch_size, self.d_model, self.conv.reach, max_length, **self.like_parameters(dtype, device))

    def prefill(self, x: Tensor, state: PastInputs) -> tuple[Tensor, PastInputs]:
        inputs, state = remember(state, x, self.conv.reach)  # [B, P + N, D]
        y = long_conv(inputs, self.conv(inputs.shape[1]))[:, inputs.shape[1] - x.shape[1] :]
        return self.projection(x) * y, state

    def step(self, x: Tensor, state: PastInputs) -> tuple[Tensor, PastInputs]:
        inputs, state = remember(state, x.unsqueeze(1), self.conv.reach)  # [B, P + 1, D]
        return self.projection(x) * long_conv_step(inputs, self.conv(inputs.shape[1])), state

    def state_bytes(self, length: int, dtype: torch.dtype) -> int:
        return past_length(length, self.conv.reach) * self.d_model * dtype.itemsize
