"""A run that is stopped, anywhere and in any company, ends as if it had not been."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import recallbench
from recallbench.interrupt import Stopped, StopRequest

STEPS = 12
PAIRS = [(0.01, 0), (0.003, 1), (0.03, 2)]


class StopAfterLooks(StopRequest):
    """A request that is made once the training loop has looked for it so many times; it looks twice a step."""

    def __init__(self, looks):
        self.left = looks

    @property
    def made(self):
        self.left -= 1
        return self.left < 0


def stop_at(step):
    return StopAfterLooks(2 * (step - 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A new folder each time."""
    return lambda: tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("mixer", ["attention", "based", "mamba"])
def test_a_run_stopped_after_any_step_ends_the_same(mixer, members, carry_out, outcome, folder):
    """Every step of three epochs of four, the last of an epoch and the last of all among them."""
    runs = members(PAIRS[:2], {"mixer": {"name": mixer}})
    expected = [outcome(record) for record in carry_out(folder(), runs)]
    for step in range(1, STEPS + 1):
        where = folder()
        with pytest.raises(Stopped):
            carry_out(where, runs, stop_at(step))
        assert sorted(path.name for path in where.rglob("*.*t")) == ["checkpoint.pt"] * 2
        assert [outcome(record) for record in carry_out(where, runs)] == expected, f"stopped at step {step}"


@settings(max_examples=12, derandomize=True)
@given(stops=st.lists(st.integers(1, 5), max_size=6))
def test_a_run_stopped_again_and_again_ends_the_same(stops, run, carry_out, outcome, folder):
    (expected,) = carry_out(folder(), [run()])
    where, at = folder(), 0
    for steps in stops:
        at += steps
        if at > STEPS:
            break
        with pytest.raises(Stopped):
            carry_out(where, [run()], stop_at(steps))
    (record,) = carry_out(where, [run()])
    assert outcome(record) == outcome(expected)


def test_a_run_asked_to_stop_in_its_last_moment_ends_and_says_so(run, carry_out, outcome, folder):
    """After the last step there is nothing to save, and what would come next must not start."""
    where = folder()
    with pytest.raises(Stopped):
        carry_out(where, [run()], StopAfterLooks(2 * STEPS))
    (record,), (expected,) = carry_out(where, [run()]), carry_out(folder(), [run()])
    assert outcome(record) == outcome(expected)


@pytest.mark.usefixtures("float64")
@settings(max_examples=10, derandomize=True)
@given(
    before=st.sampled_from([[[0, 1, 2]], [[0], [1], [2]], [[0, 1], [2]], [[0, 2]], [[1]]]),
    after=st.sampled_from([[[0, 1, 2]], [[0], [1], [2]], [[2, 0], [1]]]),
    steps=st.lists(st.integers(1, STEPS), min_size=3, max_size=3),
)
@example(before=[[0, 2]], after=[[0, 1, 2]], steps=[5, 1, 1])
def test_members_part_and_meet_as_they_like(before, after, steps, members, carry_out, outcome, numbers, folder):
    """Companies at first, stopped at steps of their own, and companies at last; some runs start only then."""
    runs = members(PAIRS)
    expected = [carry_out(folder(), [run])[0] for run in runs]
    where, reached = folder(), dict.fromkeys(range(3))
    for company, step in zip(before, steps, strict=False):
        with pytest.raises(Stopped):
            carry_out(where, [runs[i] for i in company], stop_at(step))
        reached |= dict.fromkeys(company, step)
    records = {}
    for company in after:
        found = carry_out(where, [runs[i] for i in company])
        records |= dict(zip(company, found, strict=True))
        for i in company:  # those at one step went on together, the others apart
            together = [j for j in company if reached[j] == reached[i]]
            assert records[i]["provenance"]["members"] == len(together)
    for i in range(3):
        assert numbers(outcome(records[i])) == pytest.approx(numbers(outcome(expected[i])), rel=1e-5, abs=1e-9)


def test_the_time_of_all_parts_is_counted(run, carry_out, folder):
    where = folder()
    with pytest.raises(Stopped):
        carry_out(where, [run()], stop_at(7))
    (checkpoint,) = where.glob("*/checkpoint.pt")
    before = torch.load(checkpoint, weights_only=True)
    (record,) = carry_out(where, [run()])
    assert record["cost"]["seconds"] > before["seconds"] > 0
    seconds = [entry["seconds"] for entry in record["log"]]
    assert seconds == sorted(seconds)


LONG = [
    "task.vocab_size=32",
    "task.sequence_length=32",
    "task.num_kv_pairs=4",
    "task.num_examples=512",
    "task.num_test_examples=32",
    "model.d_model=8",
    "mixer=attention",
    "train.batch_size=8",
    "train.epochs=10",
    "train.stop_at_accuracy=null",
]
"""Ten epochs of 64 steps."""


def start(*overrides):
    return subprocess.Popen(
        [sys.executable, "-m", "recallbench", *LONG, *overrides],
        cwd=Path(recallbench.__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(pattern, directory, process):
    while not list(directory.glob(pattern)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_command_and_the_same_command_goes_on(number, tmp_path):
    runs = tmp_path / "runs"
    process = start(f"runs={runs}")
    wait_for("*/log.jsonl", runs, process)  # an epoch is over
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "stopped, everything saved; the same command goes on from here\n")
    (directory,) = runs.iterdir()
    left = {"checkpoint.pt", "claim.0", "config.yaml", "log.jsonl"}
    assert {path.name for path in directory.iterdir()} == left
    stopped = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    assert 1 <= len(stopped) < 10

    process = start(f"runs={runs}")
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    record = json.loads((directory / "result.json").read_text())
    log = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    assert log[: len(stopped)] == stopped  # it did not begin anew
    assert record["cost"]["steps"] == log[-1]["step"] == 640
    assert [entry["epoch"] for entry in log] == list(range(1, 11))
