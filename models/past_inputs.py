"""The state of a long convolution: the inputs that it still needs, grown by every token or in a ring of fixed size.

A filter has a reach, the number of inputs before the current one that it sees; None where it sees all of them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.storage import stored


class GrowingPast(NamedTuple):
    """The inputs within reach, oldest first."""

    inputs: Tensor  # [B, n, D]


class FixedPast(NamedTuple):
    """Room for C inputs, that of position p in slot p mod C, written in place; zeros where no input came yet."""

    inputs: Tensor  # [B, C, D]
    length: Tensor  # [B], tokens seen so far


PastInputs = GrowingPast | FixedPast


def no_inputs(
    batch_size: int,
    channels: int,
    reach: int | None,
    max_length: int | None,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> PastInputs:
    """The past before the first token, with room for `max_length` tokens where that is given."""
    slots = 0 if max_length is None else past_length(max_length, reach)
    inputs = torch.zeros(batch_size, slots, channels, dtype=dtype, device=device)
    if max_length is None:
        return GrowingPast(inputs)
    return FixedPast(inputs, torch.zeros(batch_size, dtype=torch.int64, device=device))


def past_length(length: int, reach: int | None) -> int:
    """How many of `length` inputs have to be kept."""
    return length if reach is None else min(length, reach)


def remember(past: PastInputs, x: Tensor, reach: int | None) -> tuple[Tensor, PastInputs]:
    """Add `x` [B, N, D] to what is held.

    **Returns** the inputs that the N outputs depend on [B, P + N, D], oldest first (zeros where there was none), and
    the new past. A fixed past that has no room left for an input still needed **raises** `IndexError`.
    """
    new = stored(x, past.inputs.dtype)
    if isinstance(past, GrowingPast):
        inputs = torch.cat([past.inputs, new], dim=1)
        excess = inputs.shape[1] - past_length(inputs.shape[1], reach)
        return inputs.to(x.dtype), GrowingPast(inputs[:, excess:].clone() if excess else inputs)
    N, C = x.shape[1], past.inputs.shape[1]
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    before = past.length[:, None] + torch.arange(-C, 0, device=x.device)  # [B, C]
    inputs = torch.cat([past.inputs[rows, before % max(C, 1)], new], dim=1)
    slots = past.length[:, None] + torch.arange(N, device=x.device)  # [B, N]
    if reach == C:  # only then may the oldest be overwritten
        new, slots = new[:, max(N - C, 0) :], slots[:, max(N - C, 0) :] % max(C, 1)
    past.inputs[rows, slots] = new
    return inputs.to(x.dtype), FixedPast(past.inputs, past.length.add_(N))
