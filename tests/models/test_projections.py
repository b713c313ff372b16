"""One product for several projections."""

import pytest
import torch
from torch import nn

from models.projections import project


@pytest.mark.parametrize("N", [0, 1, 5])
def test_joined_projections_are_each_its_own(N):
    torch.manual_seed(0)
    projections = [nn.Linear(6, width, bias=False).double() for width in (4, 1, 9)]
    x = torch.randn(2, N, 6, dtype=torch.float64)
    for joined, projection in zip(project(x, *projections), projections, strict=True):
        torch.testing.assert_close(joined, projection(x), rtol=1e-12, atol=1e-12)
