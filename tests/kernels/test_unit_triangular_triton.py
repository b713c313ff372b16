"""The Triton kernel for unit triangular systems, against a solution in float64."""

import pytest
import torch

from kernels.backend import INTERPRETED, using
from kernels.unit_triangular import unit_triangular_solve

if not (torch.cuda.is_available() or INTERPRETED):
    pytest.skip("without a GPU, test_in_the_interpreter.py runs these in another process", allow_module_level=True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(("C", "P"), [(2, 1), (5, 3), (16, 40), (32, 33), (32, 96)])
def test_solves_and_differentiates(C, P):
    torch.manual_seed(C)
    exact = [torch.randn(2, 3, C, width, dtype=torch.float64, device=DEVICE) / 4 for width in (C, P)]
    ours = [t.float().mT.contiguous().mT for t in exact]  # of other strides, the upper part not to be read
    dX = torch.randn(2, 3, C, P, device=DEVICE)
    found = []
    for (L, R), backend in ((exact, "reference"), (ours, "triton")):
        L.requires_grad_()
        R.requires_grad_()
        X = unit_triangular_solve(L, R, backend)
        found.append((X.detach(), *torch.autograd.grad(X, (L, R), dX.to(X.dtype))))
    for a, b in zip(found[1], found[0], strict=True):
        assert (a - b).norm() < 1e-5 * b.norm()


def test_members_are_more_systems():
    torch.manual_seed(0)
    L, R = torch.randn(3, 2, 8, 8, device=DEVICE) / 4, torch.randn(3, 2, 8, 5, device=DEVICE)
    with using("triton"):
        together = torch.vmap(unit_triangular_solve)(L, R)
        shared = torch.vmap(unit_triangular_solve, in_dims=(None, 0))(L[0], R)
    for i in range(3):
        torch.testing.assert_close(together[i], unit_triangular_solve(L[i], R[i], "reference"))
        torch.testing.assert_close(shared[i], unit_triangular_solve(L[0], R[i], "reference"))
