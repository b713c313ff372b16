"""What the tests of kernels share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _poisoned(request):
    """What a kernel shall write holds NaN before: by this setting torch fills tensors that it does not initialise."""
    if not request.module.__name__.endswith("_triton"):
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)
