"""Members train side by side and never meet: each ends as if it had trained alone."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import MIXERS
from recallbench.members import AdamW
from recallbench.run import resolve

PAIRS = [(0.01, 0), (0.003, 1), (0.03, 2)]
"""The learning rates and seeds of three members."""


def alone_and_together(members, carry_out, tmp_path):
    alone = [carry_out(tmp_path / "alone", [run])[0] for run in members]
    together = carry_out(tmp_path / "together", members)
    assert [record["provenance"]["members"] for record in alone] == len(members) * [1]
    return alone, together


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mixer", [name for name, kind in MIXERS.items() if not kind.needs_gpu])
def test_members_end_as_if_alone(mixer, members, carry_out, outcome, numbers, tmp_path):
    """In float64 only the order of summation differs, some 1e-16; a dozen steps, and metrics that are rounded to
    float32 where they are taken, leave it far below 1e-5."""
    runs = members(PAIRS, {"mixer": {"name": mixer}})
    alone, together = alone_and_together(runs, carry_out, tmp_path)
    assert [record["provenance"]["members"] for record in together] == [3, 3, 3]
    assert {record["status"] for record in alone} == {"completed"}
    for a, b in zip(alone, together, strict=True):
        assert numbers(outcome(b)) == pytest.approx(numbers(outcome(a)), rel=1e-5, abs=1e-9)
        assert outcome(a)["config"] == outcome(b)["config"]
        assert len(a["log"]) == 3
    losses = {record["metrics"]["loss"] for record in together}
    assert len(losses) == 3  # learning rates and seeds do make a difference


@pytest.mark.parametrize("mixer", ["attention", "linear_attention", "based"])
def test_members_end_as_if_alone_in_float32(mixer, members, carry_out, outcome, numbers, tmp_path):
    """Rounding at 6e-8 grows with each of the twelve steps, AdamW's first ones above all, where the sign of a gradient
    near zero decides; accuracies move in steps of 1/32."""
    alone, together = alone_and_together(members(PAIRS, {"mixer": {"name": mixer}}), carry_out, tmp_path)
    for a, b in zip(alone, together, strict=True):
        for one, other in zip(a["log"], b["log"], strict=True):
            assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)
            assert other["validation_loss"] == pytest.approx(one["validation_loss"], rel=1e-3)
        assert b["metrics"]["accuracy"] == pytest.approx(a["metrics"]["accuracy"], abs=1 / 32 + 1e-6)


@settings(max_examples=25, derandomize=True)
@given(
    rates=st.lists(st.floats(1e-5, 0.5), min_size=1, max_size=4),
    weight_decay=st.sampled_from([0.0, 0.1, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
)
def test_adamw_is_that_of_torch_for_every_member(rates, weight_decay, dtype, scale):
    torch.manual_seed(0)
    M, shapes = len(rates), {"matrix": (5, 3), "vector": (4,), "scalar": ()}
    parameters = {name: torch.randn(M, *shape, dtype=dtype) for name, shape in shapes.items()}
    zeros = {name: torch.zeros_like(p) for name, p in parameters.items()}
    steps = torch.zeros(M, len(shapes))
    ours = AdamW(copy.deepcopy(parameters), copy.deepcopy(zeros), copy.deepcopy(zeros), steps, weight_decay)
    theirs = [{name: p[i].clone().requires_grad_() for name, p in parameters.items()} for i in range(M)]
    optimizers = [
        torch.optim.AdamW(table.values(), lr=rate, weight_decay=weight_decay)
        for table, rate in zip(theirs, rates, strict=True)
    ]
    for t in range(1, 9):
        gradients = {name: scale * torch.randn_like(p) for name, p in parameters.items()}
        changing = [rate / t for rate in rates]  # a schedule, as in training
        for i, rate in enumerate(torch.tensor(changing, dtype=dtype)):
            ours.step(i, [g[i] for g in gradients.values()], rate)
        for i, optimizer in enumerate(optimizers):
            optimizer.param_groups[0]["lr"] = changing[i]
            for name, parameter in theirs[i].items():
                parameter.grad = gradients[name][i]
            optimizer.step()
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
    for i, table in enumerate(theirs):
        for name, parameter in table.items():
            error = (ours.parameters[name][i] - parameter.detach()).abs().max()
            assert error <= tolerance * max(1, parameter.abs().max()), f"member {i}, {name}"


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rate", [1e30, 1e300])
def test_a_member_that_diverges_disturbs_no_other(rate, members, carry_out, outcome, numbers, tmp_path):
    runs = members([(0.01, 0), (rate, 0), (0.003, 1)])
    first, broken, last = carry_out(tmp_path / "together", runs)
    assert broken["status"] == "diverged"
    assert broken["reason"] == "the loss was not finite at step 2"
    assert broken["metrics"] is None
    assert broken["slices"] is None
    assert broken["cost"]["steps"] == 4  # it was let go at the end of its first epoch
    for record, run in ((first, runs[0]), (last, runs[2])):
        (alone,) = carry_out(tmp_path / "alone", [run])
        assert record["status"] == "completed"
        assert numbers(outcome(record)) == pytest.approx(numbers(outcome(alone)), rel=1e-5, abs=1e-9)


def test_a_member_that_its_last_step_breaks_has_diverged(members, carry_out, tmp_path):
    """The loss of every batch is finite, and the parameters after the last one are not."""
    runs = members([(1e38, 0), (0.01, 0)], {"train.epochs": 1, "train.batch_size": 32})
    broken, sound = carry_out(tmp_path, runs)
    assert (broken["status"], broken["reason"]) == ("diverged", "the loss was not finite at step 1")
    assert broken["metrics"] is None
    assert broken["log"][0]["validation_loss"] is None
    assert sound["status"] == "completed"


@pytest.mark.usefixtures("float64")
def test_a_member_that_reaches_its_goal_leaves_the_others_as_if_alone(tiny, carry_out, outcome, numbers, tmp_path):
    easy = {"name": "mqar", "vocab_size": 8, "sequence_length": 4, "num_kv_pairs": 1}
    changes = {
        "task": {**easy, "num_examples": 256, "num_test_examples": 64},
        "model.layers": ["mixer"],
        "train.batch_size": 16,
        "train.epochs": 4,
        "train.stop_at_accuracy": 0.6,
    }
    runs = [resolve(tiny({**changes, "train.learning_rate": rate})) for rate in (1e-4, 0.03, 3e-4)]
    slow, quick, middling = carry_out(tmp_path / "together", runs)
    assert len(quick["log"]) < 4 == len(slow["log"]) == len(middling["log"])
    assert quick["status"] == "completed"
    assert quick["metrics"]["validation_accuracy"] >= 0.6 > slow["metrics"]["validation_accuracy"]
    assert quick["cost"]["steps"] == 16 * len(quick["log"])
    assert quick["cost"]["tokens"] == 256 * 4 * len(quick["log"])
    for record, run in zip((slow, quick, middling), runs, strict=True):
        (alone,) = carry_out(tmp_path / "alone", [run])
        assert numbers(outcome(record)) == pytest.approx(numbers(outcome(alone)), rel=1e-5, abs=1e-9)


def test_the_learning_rate_follows_its_cosine_for_each_member(members, carry_out, tmp_path):
    for record, (rate, _) in zip(carry_out(tmp_path, members(PAIRS)), PAIRS, strict=True):
        expected = [rate, 0.75 * rate, 0.25 * rate]  # (1 + cos(pi e / 3)) / 2
        assert [entry["learning_rate"] for entry in record["log"]] == pytest.approx(expected, rel=1e-6)
