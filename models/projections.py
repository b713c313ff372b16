"""Several projections of one input."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def project(x: Tensor, *projections: nn.Linear) -> tuple[Tensor, ...]:
    """[B, N, D] through each projection without bias: [B, N, width] of each.

    A sequence goes through all of them in one product, which reads it once and, with it, its gradient; for a single
    token it is the weights that take the time to read, and joining them would read them twice.
    """
    if x.shape[-2] == 1:
        return tuple(projection(x) for projection in projections)
    joined = F.linear(x, torch.cat([projection.weight for projection in projections]))
    return joined.split([projection.out_features for projection in projections], dim=-1)
