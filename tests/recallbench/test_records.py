"""What a run leaves behind: a record that is complete, whatever became of the run."""

import itertools
import json
import math
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import PositiveInt

import recallbench
from models import Mixer, build_model
from models.mixers import ALL_MIXERS
from recallbench.checkpoint import WritableDirectory
from recallbench.disk import write_atomically
from recallbench.provenance import code_version
from recallbench.record import write_study
from recallbench.state import measure_state

SEGMENTS = {
    "name": "mqar",
    "vocab_size": 16,
    "train": [{"sequence_length": 8, "num_kv_pairs": 1, "num_examples": 20}],
    "test": [
        {"sequence_length": 8, "num_kv_pairs": 1, "num_examples": 12},
        {"sequence_length": 8, "num_kv_pairs": 2, "num_examples": 20},
        {"sequence_length": 12, "num_kv_pairs": 3, "num_examples": 4},
    ],
}


def test_a_record_says_all_that_it_should(run, carry_out, tmp_path):
    trained = run({"task": SEGMENTS, "model.repeats": 2})
    (record,) = carry_out(tmp_path, [trained], study="mine")
    log = record.pop("log")
    parts = "identity study status reason family config metrics slices state cost provenance"
    assert set(record) == set(parts.split())
    assert record["identity"] == trained.identity
    assert (record["study"], record["status"], record["reason"]) == ("mine", "completed", None)
    assert record["family"] == "attention"
    assert record["config"] == trained.settings
    assert record["config"]["mixer.num_heads"] == 1  # a default that was not given

    assert set(record["metrics"]) == {"accuracy", "loss", "validation_accuracy", "validation_loss"}
    assert record["metrics"]["validation_loss"] == log[-1]["validation_loss"]
    assert record["metrics"]["validation_accuracy"] == log[-1]["validation_accuracy"]
    shapes = [(s["sequence_length"], s["num_kv_pairs"], s["examples"]) for s in record["slices"]]
    assert shapes == [(8, 1, 12), (8, 2, 20), (12, 3, 4)]
    for metric in ("accuracy", "loss"):
        total = sum(s[metric] * s["examples"] for s in record["slices"])
        assert record["metrics"][metric] == pytest.approx(total / 36)

    model = build_model(trained.model)
    assert record["state"] == measure_state(model, 12)
    cost = record["cost"]
    assert set(cost) == {"seconds", "steps", "tokens", "parameters", "peak_memory_bytes"}
    assert cost["steps"] == 3 * 2  # 20 examples are two batches of 8; the rest sits out, others the next time
    assert cost["tokens"] == 6 * 8 * 8
    assert cost["parameters"] == sum(p.numel() for p in model.parameters())
    assert cost["seconds"] > 0
    assert cost["peak_memory_bytes"] > 4 * cost["parameters"]

    origin = record["provenance"]
    assert set(origin) == {"code_version", "packages", "python", "device", "host", "time", "members"}
    assert origin["code_version"] == code_version()
    assert origin["packages"]["torch"] == torch.__version__
    assert origin["members"] == 1
    assert datetime.fromisoformat(origin["time"]).tzinfo is not None

    keys = "epoch epochs step learning_rate train_loss validation_loss validation_accuracy seconds"
    assert [set(entry) for entry in log] == 3 * [set(keys.split())]
    assert [entry["step"] for entry in log] == [2, 4, 6]
    directory = tmp_path / trained.identity
    assert yaml.safe_load((directory / "config.yaml").read_text()) == trained.settings
    left = {path.name for path in directory.iterdir()}
    assert {"config.yaml", "log.jsonl", "result.json"} <= left
    assert not [name for name in left if "checkpoint" in name or "partial" in name]


def test_the_loss_of_an_untrained_model_is_that_of_guessing(run, carry_out, tmp_path):
    """A model this small, hardly trained, knows one token from another no better than 1 in 8192."""
    task = {"name": "mqar", "num_examples": 8, "num_test_examples": 64}
    (record,) = carry_out(tmp_path, [run({"task": task, "train.learning_rate": 1e-9, "train.epochs": 1})])
    assert record["log"][0]["train_loss"] == pytest.approx(math.log(8192), rel=0.1)
    assert record["metrics"]["loss"] == pytest.approx(math.log(8192), rel=0.1)
    assert record["metrics"]["accuracy"] < 0.05


def files(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_run_with_a_record_is_not_run_again(members, carry_out, tmp_path):
    runs = members([(0.01, 0), (0.02, 0)])
    carry_out(tmp_path, runs[:1])
    before = files(tmp_path)
    carry_out(tmp_path, runs[:1])
    assert files(tmp_path) == before
    _, other = carry_out(tmp_path, runs)
    assert files(tmp_path).items() >= before.items()
    assert other["provenance"]["members"] == 1


def test_a_rerun_keeps_what_was_there(run, carry_out, outcome, tmp_path):
    (first,) = carry_out(tmp_path, [run()])
    directory = tmp_path / run().identity
    before = (directory / "result.json").read_bytes()
    for times in (1, 2, 3):
        (again,) = carry_out(tmp_path, [run()], rerun=True)
        assert outcome(again) == outcome(first)
        assert len(list((directory / "earlier").glob("*.result.json"))) == times
        assert len(list((directory / "earlier").glob("*.log.jsonl"))) == times
    oldest = min((directory / "earlier").glob("*.result.json"))
    assert oldest.read_bytes() == before


def test_a_rerun_begins_at_the_beginning(run, carry_out, tmp_path):
    """Even where a process was killed between its record and the removal of its last checkpoint."""
    carry_out(tmp_path, [run({"train.stop_at_accuracy": None})])
    directory = WritableDirectory(tmp_path, run({"train.stop_at_accuracy": None}))
    directory.save_checkpoint({"step": 12, "log": "of a process that was killed"})
    (again,) = carry_out(tmp_path, [directory.run], rerun=True)
    assert again["status"] == "completed"
    assert len(again["log"]) == 3


class Failing(Mixer):
    """Does nothing, and fails at an input of so many rows."""

    def __init__(self, d_model: PositiveInt, rows: PositiveInt = 8):
        super().__init__()
        self.rows = rows
        self.weight = torch.nn.Parameter(torch.zeros(d_model))

    def init_state(self, batch_size, *, max_length=None, dtype=None, device=None):
        return torch.zeros(batch_size, 0, **self.like_parameters(dtype, device))

    def prefill(self, x, state):
        if len(x) == self.rows:
            raise LookupError("this mixer fails\nand says so at length")
        return x * self.weight, state

    def step(self, x, state):
        return x * self.weight, state

    def state_bytes(self, length, dtype):
        return 0


@pytest.fixture
def failing(monkeypatch):
    monkeypatch.setitem(ALL_MIXERS, "failing", Failing)


@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize(
    ("rows", "epochs"),
    [pytest.param(8, 0, id="at the first step"), pytest.param(5, 0, id="at validation"), pytest.param(1, 3, id="last")],
)
def test_a_run_that_fails_has_a_record_that_says_why(rows, epochs, members, carry_out, tmp_path):
    """Batches have 8 rows, what is left over at validation 5, and state is measured with one."""
    changes = {
        "mixer": {"name": "failing", "rows": rows},
        "task": {**SEGMENTS, "test": [{"sequence_length": 8, "num_kv_pairs": 1, "num_examples": 13}]},
    }
    for record in carry_out(tmp_path, members([(0.01, 0), (0.02, 0)], changes)):
        assert (record["status"], record["reason"]) == ("failed", "LookupError: this mixer fails")
        assert "metrics" not in record
        assert len(record["log"]) == epochs
        assert record["provenance"]["members"] == 2
        directory = tmp_path / record["identity"]
        traceback = (directory / "error.txt").read_text()
        assert traceback.startswith("Traceback")
        assert "and says so at length" in traceback
        assert not list(directory.glob("checkpoint*"))


def test_a_failed_run_that_succeeds_at_a_rerun_shows_no_error(run, carry_out, monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        patched.setitem(ALL_MIXERS, "failing", Failing)
        broken = run({"mixer": {"name": "failing"}})
        (record,) = carry_out(tmp_path, [broken])
        assert record["status"] == "failed"
        patched.setattr(Failing, "prefill", lambda self, x, state: (x * self.weight, state))  # the bug is mended
        (record,) = carry_out(tmp_path, [broken])
        assert record["status"] == "failed"  # it has a record
        (record,) = carry_out(tmp_path, [broken], rerun=True)
    assert record["status"] == "completed"
    directory = tmp_path / broken.identity
    assert not (directory / "error.txt").exists()
    (kept,) = (directory / "earlier").glob("*.error.txt")
    assert "LookupError" in kept.read_text()


def test_what_never_fits_in_memory_is_said_of_each_member(members, carry_out, tmp_path):
    """10^12 examples are 64 TiB of tokens: more than an address space, refused at once."""
    task = {"name": "mqar", "vocab_size": 16, "sequence_length": 8, "num_kv_pairs": 2, "num_examples": 10**12}
    runs = members([(0.01, 0), (0.02, 0), (0.03, 0)], {"task": task})
    for record in carry_out(tmp_path, runs):
        assert record["status"] == "out_of_memory"
        assert "can't allocate memory" in record["reason"]
        assert "\n" not in record["reason"]
        assert record["provenance"]["members"] == 1  # halved until it was alone
        assert (tmp_path / record["identity"] / "error.txt").read_text().startswith("Traceback")


LITTLE_MEMORY = """
import json, resource, sys, torch
from recallbench.execution import ExecutionConfig
from recallbench.run import runs_of
from recallbench.execute import execute
from recallbench.interrupt import StopRequest

runs = runs_of(json.loads(sys.argv[2]))
torch.set_num_threads(1)
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, 2 * (held + 190 * 2**20,))
execute(runs, ExecutionConfig(runs=sys.argv[1], device="cpu"), StopRequest())
"""
"""Embeddings of 8 MiB, of which a member needs seven or so at once: 260 MiB are enough for four and 120 for one."""


def test_members_that_do_not_fit_together_train_in_halves(tiny, tmp_path):
    changes = {
        "task": {"name": "mqar", "sequence_length": 4, "num_kv_pairs": 1, "num_examples": 1, "num_test_examples": 1},
        "task.vocab_size": 2**16,
        "model.d_model": 32,
        "model.layers": ["mixer"],
        "train.epochs": 1,
        "members": [{"learning_rate": rate, "seed": 0} for rate in (0.1, 0.01, 0.001, 0.0001)],
    }
    command = [sys.executable, "-c", LITTLE_MEMORY, str(tmp_path), json.dumps(tiny(changes))]
    # One arena: glibc reserves 128 MiB of addresses for that of another thread, if and when it asks for memory.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    subprocess.run(command, cwd=Path(recallbench.__file__).parents[1], env=environment, check=True)
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*/result.json")]
    assert [record["status"] for record in records] == 4 * ["completed"]
    assert max(record["provenance"]["members"] for record in records) <= 2


def test_writing_is_all_or_nothing(tmp_path):
    path = tmp_path / "file.json"
    write_atomically(path, "before")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, 100_000 * "long" + "\ud800")  # fails after some of it is written
    assert path.read_text() == "before"
    write_atomically(path, "after")
    assert path.read_text() == "after"


@settings(max_examples=20, derandomize=True)
@given(calls=st.lists(st.lists(st.sampled_from("abcdef"), max_size=5), min_size=1, max_size=4))
def test_a_manifest_loses_nothing_and_repeats_nothing(calls, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    for identities in calls:
        write_study(runs, "mine", identities)
    manifest = json.loads((runs / "studies" / "mine.json").read_text())
    assert manifest == {"study": "mine", "identities": list(dict.fromkeys(itertools.chain(*calls)))}


def test_the_code_version_is_a_commit_only_of_our_own_checkout(tmp_path):
    """Installed into the repository of someone else, the commit there says nothing of this code."""
    root = Path(recallbench.__file__).parents[1]
    installed = tmp_path / "project"
    for package in ("kernels", "models", "recallbench"):
        (installed / package).parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", str(root / package), str(installed / package)], check=True)
    identity = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a"}
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "other"]):
        subprocess.run(["git", *command], cwd=installed, env={**os.environ, **identity}, check=True)
    program = "import recallbench.provenance as r; print(r.__file__, r.code_version(), sep='\\n')"

    def version():
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=installed, capture_output=True, text=True, check=True
        )
        file, version = done.stdout.splitlines()
        assert Path(file).is_relative_to(installed)
        return version

    before = version()
    assert re.fullmatch("sources [0-9a-f]{12}", before)
    with (installed / "models" / "mixer.py").open("a") as file:
        file.write("# changed\n")
    assert version() != before
