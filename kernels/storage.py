"""What a state keeps of numbers that were computed in more bits."""

import torch
from torch import Tensor


def stored(x: Tensor, dtype: torch.dtype, copy: bool = False) -> Tensor:
    """`x` in the dtype of a state: what 8 bits cannot hold becomes the largest that they can.

    Without that, whether it becomes that, infinite or no number depends on the dtype, torch's version and the device.
    **Arguments:** `copy`: in memory of its own even where the dtype is that of `x`.
    """
    if dtype.itemsize == 1:
        most = torch.finfo(dtype).max
        x = x.clamp(-most, most)
    return x.to(dtype, copy=copy)
