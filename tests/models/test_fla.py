"""Layers of flash-linear-attention behind our contract, on a GPU; elsewhere only what a configuration may ask for."""

import pytest
import torch

from models import MIXERS
from models.mixers import ALL_MIXERS
from models.settings import SettingError, construct
from recallbench.execute import execute
from recallbench.execution import ExecutionConfig
from recallbench.interrupt import StopRequest
from recallbench.run import resolve
from recallbench.state import storages

LAYERS = ["MultiScaleRetention", "HGRN2Attention"]
D = 128


def test_wrong_layers_and_options_are_said_in_a_sentence():
    Fla = ALL_MIXERS["fla"]
    with pytest.raises(SettingError, match=r"layer is 'Gated': it must be one of .*GatedDeltaNet"):
        construct(Fla, {"d_model": D, "layer": "Gated"})
    with pytest.raises(SettingError, match=r"options.heads is 2: DeltaNet takes .*num_heads"):
        construct(Fla, {"d_model": D, "layer": "DeltaNet", "options": {"heads": 2}})
    with pytest.raises(SettingError, match=r"layer is 'BasedLinearAttention': it must be a layer that keeps a state"):
        construct(Fla, {"d_model": D, "layer": "BasedLinearAttention"})


def test_it_constructs_anywhere_and_is_offered_where_it_runs():
    assert ALL_MIXERS["fla"](D).layer.o_proj.weight.shape[0] == D
    assert ("fla" in MIXERS) == torch.cuda.is_available()


def test_it_is_refused_on_a_cpu_before_anything_is_written(tmp_path):
    config = {
        "task": {"name": "mqar"},
        "model": {"layers": ["mixer"]},
        "mixer": {"name": "fla"},
        "train": {},
        "seed": 0,
    }
    with pytest.raises(SettingError, match="device is 'cpu': the mixer fla runs on a GPU alone"):
        execute([resolve(config)], ExecutionConfig(runs=str(tmp_path), device="cpu"), StopRequest())
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fla's kernels run on a GPU")
@pytest.mark.parametrize("layer", LAYERS)
@torch.no_grad()
def test_forward_is_prefill_then_steps(layer):
    """Within 2e-2: fla multiplies in tf32 and chunks where we step, each with rounding errors near 1e-3."""
    torch.manual_seed(0)
    mixer = MIXERS["fla"](D, layer=layer).cuda()
    x = torch.randn(2, 140, D, device="cuda")
    expected = mixer(x)
    y, state = mixer.prefill(x[:, :100], mixer.init_state(2))
    outputs = [y]
    for t in range(100, 140):
        y, state = mixer.step(x[:, t], state)
        outputs.append(y[:, None])
    assert (torch.cat(outputs, 1) - expected).norm() < 2e-2 * expected.norm()
    assert state.length.tolist() == [140, 140]
    held = sum(size for _, size in storages(state).values())
    assert held == 2 * mixer.state_bytes(140, torch.float32) > 0
