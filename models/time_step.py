"""How state space models draw their step sizes at the start: log-uniform over two orders of magnitude."""

import math

import torch
from torch import Tensor

LEAST, GREATEST = 1e-3, 1e-1
"""The range of initial step sizes. Source: Gu et al. 2022, arXiv 2206.12037; kept by Mamba."""


def log_time_step(count: int) -> Tensor:
    """log dt [count], uniform over the logarithms of the range."""
    return torch.empty(count).uniform_(math.log(LEAST), math.log(GREATEST))


def time_step_bias(count: int) -> Tensor:
    """The bias [count] for which softplus gives such step sizes."""
    dt = log_time_step(count).exp()
    return dt + torch.log(-torch.expm1(-dt))
