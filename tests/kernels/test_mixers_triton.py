"""Mixers over the Triton kernels are what they are over the references, on a GPU or in Triton's interpreter."""

import os

import pytest
import torch
from torch.utils._pytree import tree_leaves

from kernels import (
    attention_step_triton,
    based_triton,
    selective_scan_step_triton,
    short_conv_triton,
    sliding_window_triton,
    taylor_step_triton,
)
from kernels.backend import using
from models import MIXERS
from models.language_model import STEP_OPTIONS

CUDA = torch.cuda.is_available()
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("without a GPU, test_in_the_interpreter.py runs these in another process", allow_module_level=True)

DEVICE = "cuda" if CUDA else "cpu"
D = 16
STEPS = {
    attention_step_triton: "_spans",
    based_triton: "_step",
    selective_scan_step_triton: "_step",
    short_conv_triton: "_step",
    sliding_window_triton: "_step",
    taylor_step_triton: "_step",
}
OPTIONS = {
    "attention": {"num_heads": 4, "num_kv_heads": 2, "use_rope": True},
    "linear_attention": {"feature_dim": 6, "num_heads": 2},
    "based": {"feature_dim": 6, "num_heads": 2, "window_size": 3},
    "sliding_window": {"num_heads": 4, "num_kv_heads": 2, "window_size": 3, "use_rope": True},
    "short_conv": {},
    "mamba": {"d_state": 4},
}
PARALLEL = {"mamba2": {"d_state": 4, "head_dim": 8}, "retnet": {"num_heads": 4}}
"""Whose steps are no kernels."""


@pytest.mark.parametrize(("name", "options"), (OPTIONS | PARALLEL).items())
@torch.no_grad()
def test_prefill_and_steps(name, options):
    torch.manual_seed(0)
    mixer = MIXERS[name](D, **options).to(DEVICE)
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


@pytest.mark.parametrize("name", ["sliding_window", "short_conv", "mamba", "mamba2", "retnet"])
def test_gradients_behind_a_past(name):
    """Heads of queries or values share keys, and a state's own gradient goes on through prefill."""
    torch.manual_seed(0)
    mixer = MIXERS[name](D, **(OPTIONS | PARALLEL)[name]).to(DEVICE)
    x = torch.randn(2, 9, D, device=DEVICE)
    results = {}
    for backend in ("triton", "reference"):
        with using(backend):
            y, state = mixer.prefill(x[:, :5], mixer.init_state(2))
            loss = (torch.cat([y, mixer.prefill(x[:, 5:], state)[0], mixer(x)], 1) ** 2).sum()
            results[backend] = torch.autograd.grad(loss, list(mixer.parameters()))
    for fused, exact in zip(results["triton"], results["reference"], strict=True):
        assert (fused - exact).norm() < 1e-5 * exact.norm()


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_compiled_steps_write_the_state_in_place(name, monkeypatch):
    """To each kernel goes the state itself, not a copy, which would take as long again to write and to read."""
    torch.manual_seed(0)
    mixer = MIXERS[name](D, **OPTIONS[name]).to(DEVICE)
    x = torch.randn(2, 3, D, device=DEVICE)
    state = mixer.init_state(2, max_length=3)
    given = set()
    for module, kernel in STEPS.items():
        monkeypatch.setattr(module, kernel, Recorder(getattr(module, kernel), given))
    torch.compiler.reset()
    step = torch.compile(MIXERS[name].step, dynamic=False, options=STEP_OPTIONS)
    with using("triton"):
        expected, after = mixer.prefill(x, mixer.init_state(2, max_length=3))
        for t in range(3):
            y, new = step(mixer, x[:, t], state)
            assert (y - expected[:, t]).norm() < 1e-5 * expected.norm()
    places = [leaf.data_ptr() for leaf in tree_leaves(state)]
    assert set(places) <= given
    assert [leaf.data_ptr() for leaf in tree_leaves(new)] == places
    for a, b in zip(tree_leaves(state), tree_leaves(after), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


class Recorder:
    """A kernel that notes where its tensors are."""

    def __init__(self, kernel, places):
        self.kernel, self.places = kernel, places

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.places |= {t.data_ptr() for t in arguments if isinstance(t, torch.Tensor)}
            return self.kernel[grid](*arguments, **options)

        return launch
