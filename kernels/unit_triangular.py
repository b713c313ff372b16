"""Unit triangular systems, many small ones: (I + L) X = R, of which only what is strictly below L's diagonal is read.

They are what ties the positions of a chunk together in the delta rule, one a chunk and head. On a GPU each is solved in
registers (`kernels/unit_triangular_triton.py`).
"""

import torch
from torch import Tensor

from kernels.backend import Backend, takes_triton
from kernels.unit_triangular_triton import fused_unit_triangular_solve


def unit_triangular_solve(L: Tensor, R: Tensor, backend: Backend | None = None) -> Tensor:
    """X [..., C, P] of `L` [..., C, C] and `R` [..., C, P], of one dtype; `backend`: as `kernels.backend` says."""
    if takes_triton("unit_triangular_solve", backend, (L, R), C=L.shape[-1]):
        return fused_unit_triangular_solve(L, R)
    return torch.linalg.solve_triangular(L, R, upper=False, unitriangular=True)
