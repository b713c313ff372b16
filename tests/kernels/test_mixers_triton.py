"""Mixers over the Triton kernels are what they are over the references, on a GPU or in Triton's interpreter."""

import os

import pytest
import torch

from kernels.backend import using
from models import MIXERS

CUDA = torch.cuda.is_available()
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("without a GPU, test_in_the_interpreter.py runs these in another process", allow_module_level=True)

DEVICE = "cuda" if CUDA else "cpu"
D = 16
OPTIONS = {
    "attention": {"num_heads": 4, "num_kv_heads": 2, "use_rope": True},
    "linear_attention": {"feature_dim": 4, "num_heads": 2},
    "based": {"feature_dim": 4, "num_heads": 2, "window_size": 3},
    "sliding_window": {"num_heads": 4, "num_kv_heads": 2, "window_size": 3, "use_rope": True},
    "short_conv": {},
    "mamba": {"d_state": 4},
}


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_prefill_and_steps(name):
    torch.manual_seed(0)
    mixer = MIXERS[name](D, **OPTIONS[name]).to(DEVICE)
    x = torch.randn(2, 9, D, device=DEVICE)
    results = {}
    for backend in ("triton", "reference"):
        with using(backend):
            y, state = mixer.prefill(x[:, :5], mixer.init_state(2, max_length=9))
            outputs = [y]
            for t in range(5, 9):
                y, state = mixer.step(x[:, t], state)
                outputs.append(y.unsqueeze(1))
            results[backend] = torch.cat([*outputs, mixer(x)], 1)
    fused, exact = results["triton"], results["reference"]
    assert (fused - exact).norm() < 1e-5 * exact.norm()
    assert (fused[:, :9] - fused[:, 9:]).norm() < 1e-5 * exact.norm()
