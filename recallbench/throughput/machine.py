"""What the device can do at best: bytes a second through its memory, operations a second in matrix products."""

import functools
from typing import NamedTuple

import torch

from recallbench.throughput.timing import durations

COPIED = {"cuda": 2**30, "cpu": 2**27}
"""Bytes that are copied: more than any cache holds."""

WIDTH = {"cuda": 8192, "cpu": 1024}
"""Of the square matrices that are multiplied."""

REPEATS = 10


class Rates(NamedTuple):
    """Bytes a second of a large copy, read and written, and operations a second of a large square product."""

    bytes_per_second: float
    flops_per_second: float


@functools.cache
def rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measured once a process; the best of several, since a floor is what nothing gets below."""
    source = torch.empty(COPIED[device.type], dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    copies = durations(lambda: _copy(source, target), REPEATS, device)
    n = WIDTH[device.type]
    # Random, since a GPU's clock depends on how many bits change.
    a, b, c = (torch.randn(n, n, device=device).to(dtype) for _ in range(3))
    products = durations(lambda: _multiply(a, b, c), REPEATS, device)
    return Rates(2 * source.numel() / min(copies), 2 * n**3 / min(products))


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    target.copy_(source)


def _multiply(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    torch.mm(a, b, out=out)
