"""Records as one Parquet file and back: nothing is lost on the way, nor runs again."""

import json
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest
from pandas.testing import assert_frame_equal

import analysis
from sweeps.__main__ import main

STUDY = ["+study=some", "task.num_examples=64", "task.num_test_examples=32", "train.epochs=1", "device=cpu"]


class Called(NamedTuple):
    """How a call ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """`python -m sweeps` in this process, which spares the seconds of importing torch."""
    monkeypatch.chdir(tmp_path)

    def called(*arguments):
        monkeypatch.setattr(sys, "argv", ["sweeps", *arguments])
        return Called(main(), *capsys.readouterr())

    return called


def launch(folder, runs):
    """A study called `some`, of four runs."""
    grid = "{train.learning_rate: [0.001, 0.01], mixer: [attention, linear_attention]}"
    (folder / "study").mkdir()
    (folder / "study" / "some.yaml").write_text(
        "# @package _global_\nstudy: some\nhydra: {mode: MULTIRUN, sweeper: {params: " + grid + "}}\n"
    )
    command = [sys.executable, "-m", "recallbench", "--config-dir", ".", *STUDY, f"runs={runs}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def runs_of_study(tmp_path_factory):
    """The study's runs, done once for all."""
    folder = tmp_path_factory.mktemp("study")
    assert "4 runs done" in launch(folder, "first")
    return folder / "first"


@pytest.fixture
def first(runs_of_study, tmp_path):
    """These runs, in a folder of the test's own."""
    return shutil.copytree(runs_of_study, tmp_path / "first")


@pytest.mark.usefixtures("first")
def test_what_was_imported_is_not_run_again(call, tmp_path):
    assert call("export", "some", "--runs", "first", "--out", "some.parquet").returncode == 0
    assert call("import", "some.parquet", "--runs", "second").stdout == "4 of 4 runs are new in second\n"
    assert "4 done, 0 to go" in launch(tmp_path, "second")
    before, after = (analysis.load(tmp_path / runs, study="some") for runs in ("first", "second"))
    assert_frame_equal(after, before[list(after)], check_dtype=False)
    assert before[list(set(before) - set(after))].isna().all(axis=None)  # left out is what no run has
    for record in (tmp_path / "second").glob("*/result.json"):
        original = json.loads((tmp_path / "first" / record.parent.name / "result.json").read_text())
        assert json.loads(record.read_text())["metrics"] == original["metrics"]
        record.write_text("{}")
    assert call("import", "some.parquet", "--runs", "second").stdout == "0 of 4 runs are new in second\n"
    assert {record.read_text() for record in (tmp_path / "second").glob("*/result.json")} == {"{}"}


def test_a_setting_that_came_since_has_its_default(call, first, tmp_path):
    """In a record that was made before it; one that would be another run with it stays as it was made."""
    runs = analysis.load(first, study="some")
    old = runs.drop(columns=["mixer.use_rope", "mixer.num_heads", "train.weight_decay"])
    old["model.layers"] = [
        [{key: v for key, v in layer.items() if key not in ("use_rope", "num_heads", "bias")} for layer in layers]
        for layers in old["model.layers"]
    ]
    gone = old["mixer.name"] == "attention"
    old.loc[gone & (old["train.learning_rate"] == 0.01), "seed"] = 7  # with which its identity does not agree
    analysis.save(old, tmp_path / "old.parquet")
    assert call("import", "old.parquet", "--runs", "second").returncode == 0
    columns = ["mixer.use_rope", "mixer.num_heads", "train.weight_decay", "model.layers"]
    found = analysis.load(tmp_path / "second", study="some").set_index("identity")
    expected = runs.set_index("identity").loc[found.index]
    strange = found["seed"] == 7
    assert strange.sum() == 1
    assert_frame_equal(found.loc[~strange, columns], expected.loc[~strange, columns], check_dtype=False)
    assert found.loc[strange, "train.weight_decay"].isna().all()


def test_export_adds_to_what_the_file_holds(call, first, tmp_path):
    second = shutil.copytree(first, tmp_path / "second")
    for runs, gone in ((first, "linear_attention"), (second, "attention")):
        for record in list(runs.glob("*/result.json")):
            if json.loads(record.read_text())["family"] == gone:
                shutil.rmtree(record.parent)
    for runs, count in (("first", 2), ("second", 4)):
        told = call("export", "some", "--runs", runs, "--out", "all.parquet").stdout
        assert told == f"{count} runs in all.parquet\n"
    assert sorted(analysis.load(tmp_path / "all.parquet")["family"]) == 2 * ["attention"] + 2 * ["linear_attention"]


def test_a_file_that_holds_no_records_is_told(call, tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    told = call("import", "broken.parquet")
    assert told.returncode == 2
    assert told.stderr.startswith("broken.parquet cannot be read as saved run records: ")
    told = call("import", "none.parquet")
    assert (told.returncode, told.stderr) == (2, "no run records in none.parquet\n")
