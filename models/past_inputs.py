"""The state of a long convolution: the inputs that it still needs, grown by every token or in a ring of fixed size.

A filter has a reach, the number of inputs before the current one that it sees; None where it sees all of them.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class GrowingPast(NamedTuple):
    """The inputs within reach, oldest first."""

    inputs: Tensor  # [B, n, D]


class FixedPast(NamedTuple):
    """Room for C inputs, that of position p in slot p mod C, written in place; zeros where no input came yet."""

    inputs: Tensor  # [B, C, D]
    length: Tensor  # [B], tokens seen so far


PastInputs = GrowingPast | FixedPast


def no_inputs(batch_size: int, channels: int, reach: int | None, max_length: int | None, **like: Any) -> PastInputs:
    """The past before the first token, with room for `max_length` tokens where that is given."""
    if max_length is None:
        return GrowingPast(torch.zeros(batch_size, 0, channels, **like))
    capacity = past_length(max_length, reach)
    length = torch.zeros(batch_size, dtype=torch.int64, device=like["device"])
    return FixedPast(torch.zeros(batch_size, capacity, channels, **like), length)


def past_length(length: int, reach: int | None) -> int:
    """How many of `length` inputs have to be kept."""
    return length if reach is None else min(length, reach)


def remember(past: PastInputs, x: Tensor, reach: int | None) -> tuple[Tensor, PastInputs]:
    """Add `x` [B, N, D] to what is held.

    **Returns** the inputs that the N outputs depend on [B, P + N, D], oldest first (zeros where there was none), and
    the new past.
    """
    if isinstance(past, GrowingPast):
        inputs = torch.cat([past.inputs, x.to(past.inputs.dtype)], dim=1)
        excess = inputs.shape[1] - past_length(inputs.shape[1], reach)
        return inputs.to(x.dtype), GrowingPast(inputs[:, excess:].clone() if excess else inputs)
    N, C = x.shape[1], past.inputs.shape[1]
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    ago = torch.arange(-C, 0, device=x.device)
    before = past.inputs[rows, (past.length[:, None] + ago) % max(C, 1)].to(x.dtype)  # [B, C, D]
    kept = x[:, max(N - C, 0) :] if reach is not None else x
    slots = past.length[:, None] + torch.arange(N - kept.shape[1], N, device=x.device)
    # Without a finite reach nothing may be overwritten: a token beyond the room for it is an index out of range.
    past.inputs[rows, slots if reach is None else slots % max(C, 1)] = kept.to(past.inputs.dtype)
    return torch.cat([before, x], dim=1), FixedPast(past.inputs, past.length.add_(N))
