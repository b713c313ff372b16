"""Recall in recurrent form with a state dtype of its own, from weights that were trained once."""

import json

import pytest
import torch

from models import MIXERS, build_model
from recallbench.decode import evaluate_recurrently
from recallbench.execute import execute
from recallbench.execution import ExecutionConfig
from recallbench.interrupt import StopRequest
from recallbench.members import every_member
from recallbench.record import RunDirectory
from recallbench.run import resolve
from recallbench.tasks import TASKS
from recallbench.train import evaluate

SMALL = {"name": "mqar", "vocab_size": 32, "sequence_length": 24, "num_kv_pairs": 3}
CONFIG = {
    "task": {**SMALL, "num_examples": 64, "num_test_examples": 32},
    "model": {"d_model": 16, "layers": ["short_conv", "mixer"]},
    "mixer": {"name": "based", "feature_dim": 4, "window_size": 4},
    "train": {"batch_size": 32, "epochs": 1},
    "seed": 0,
    "decode": {"state_dtype": None},
    "members": [],
}


def run_of(state_dtype):
    return resolve({**CONFIG, "decode": {"state_dtype": state_dtype}})


@pytest.mark.parametrize("mixer", ["attention", "based", "mamba2", "short_conv"])
def test_token_by_token_scores_what_the_parallel_form_scores(mixer):
    torch.manual_seed(0)
    model = build_model({"vocab_size": 32, "d_model": 16, "layers": ["short_conv", mixer]})
    settings = {key: value for key, value in SMALL.items() if key != "name"}
    slices = TASKS["mqar"](**settings, num_examples=8, num_test_examples=50).examples("test", "cpu")
    stacked = {name: p.detach()[None] for name, p in model.named_parameters()}
    parallel, parallel_slices = evaluate(every_member(model, "answers"), stacked, slices, batch_size=16)
    recurrent, recurrent_slices = evaluate_recurrently(model, slices, batch_size=16, dtype=torch.float32)
    assert recurrent["accuracy"] == pytest.approx(parallel[0]["accuracy"], abs=0.011)  # a tie may fall either way
    assert recurrent["loss"] == pytest.approx(parallel[0]["loss"], rel=1e-5)
    for a, b in zip(recurrent_slices, parallel_slices[0], strict=True):
        assert a.keys() == b.keys()
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_a_state_dtype_needs_no_training_of_its_own(tmp_path):
    execution = ExecutionConfig(runs=str(tmp_path))
    execute([run_of("bfloat16")], execution, StopRequest())
    trained, rounded = (RunDirectory(tmp_path, run_of(dtype).identity) for dtype in (None, "bfloat16"))
    written = trained.record_path.stat().st_mtime_ns
    execute([run_of(None), run_of("bfloat16"), run_of("float8_e5m2")], execution, StopRequest())
    assert trained.record_path.stat().st_mtime_ns == written

    coarse = RunDirectory(tmp_path, run_of("float8_e5m2").identity)
    records = [json.loads(d.record_path.read_text()) for d in (trained, rounded, coarse)]
    assert len({record["identity"] for record in records}) == 3
    assert [record["state"]["dtype"] for record in records] == ["float32", "bfloat16", "float8_e5m2"]
    kept = torch.int64.itemsize + 15 * torch.float32.itemsize  # the ring's position, and z at K = 4, whatever the dtype
    sizes = [record["state"]["bytes"] - kept for record in records]
    assert sizes[0] == 2 * sizes[1] == 4 * sizes[2]
    assert all(record["status"] == "completed" for record in records)
    assert records[1]["metrics"]["loss"] == pytest.approx(records[0]["metrics"]["loss"], rel=0.05)


def test_what_did_not_train_cannot_be_decoded(tmp_path):
    hot = resolve({**CONFIG, "train": {**CONFIG["train"], "learning_rate": 1e30}, "decode": {"state_dtype": "float16"}})
    execute([hot], ExecutionConfig(runs=str(tmp_path)), StopRequest())
    record = RunDirectory(tmp_path, hot.identity).record()
    assert record["status"] == "diverged"
    assert "training" in record["reason"]


@pytest.mark.parametrize("name", [name for name, kind in MIXERS.items() if not kind.needs_gpu])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float16, 5e-3), (torch.float8_e4m3fn, 0.25), (torch.float8_e5m2, 0.5)]
)
def test_every_state_can_be_kept_in_few_bits(name, dtype, bound):
    """Half a unit in the last place is 2^-11, 2^-4 and 2^-3 of a number; 20 roundings in a row stay below 4 of them,
    or 8 for float16, whose subnormal numbers start early."""
    torch.manual_seed(0)
    mixer = MIXERS[name](16)
    x = torch.randn(2, 20, 16)
    state, outputs = mixer.init_state(2, dtype=dtype), []
    with torch.no_grad():
        for t in range(20):
            y, state = mixer.step(x[:, t], state)
            outputs.append(y)
        expected = mixer(x)
    assert (torch.stack(outputs, 1) - expected).norm() < bound * expected.norm()
