"""From a study's file to its figures, as the two commands of the README go."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import recallbench

STUDY = """
# @package _global_
study: sample
task:
  vocab_size: 16
  sequence_length: null
  num_kv_pairs: null
  num_examples: null
  num_test_examples: null
  train: [{sequence_length: 16, num_kv_pairs: 2, num_examples: 64}]
  test:
    - {sequence_length: 16, num_kv_pairs: 1, num_examples: 16}
    - {sequence_length: 16, num_kv_pairs: 2, num_examples: 32}
    - {sequence_length: 16, num_kv_pairs: 4, num_examples: 16}
model: {d_model: 8}
train: {batch_size: 16, epochs: 2}
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      train.learning_rate: [0.001, 0.01]
    grids:
      - mixer: attention
      - {mixer: sliding_window, mixer.window_size: [2, 4]}
      - {mixer: based, mixer.feature_dim: [2, 4], mixer.window_size: 2}
"""
ARCHITECTURES, RATES, SLICES = 5, 2, 3


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A folder with the study's runs under `runs` and its figures under `figures`, and what the commands said."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "conf" / "study").mkdir(parents=True)
    (folder / "conf" / "study" / "sample.yaml").write_text(STUDY)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(recallbench.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "60",
    }
    said = [
        subprocess.run(
            [sys.executable, "-m", *command.split()],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for command in (
            "recallbench --config-dir conf +study=sample",
            "analysis figures runs --study sample --out figures",
        )
    ]
    return folder, said


def test_every_point_has_its_record(studied):
    folder, (said, _) = studied
    assert said.startswith("sample: 10 runs, 0 done, 10 to go\n")
    identities = json.loads((folder / "runs" / "studies" / "sample.json").read_text())["identities"]
    records = [json.loads((folder / "runs" / name / "result.json").read_text()) for name in identities]
    assert len(records) == ARCHITECTURES * RATES
    assert {record["status"] for record in records} == {"completed"}
    assert all(len(record["slices"]) == SLICES for record in records)
    assert sum(line.startswith("completed  accuracy 0.") for line in said.splitlines()) == len(records)


def test_every_figure_has_its_files_and_its_points(studied):
    folder, (_, said) = studied
    told = dict(line.split(": ", 1) for line in said.splitlines())
    names = {name for name, what in told.items() if not what.startswith("left out, ")}
    assert names >= {"recall_by_state", "accuracy_by_kv_pairs", "training_cost"}
    assert told["perplexity_by_state"] == "left out, no run is a language model's"
    for name in names:
        for suffix in (".png", ".pdf", ".csv", ".md"):
            assert (folder / "figures" / f"{name}{suffix}").stat().st_size > 0
    assert (folder / "figures" / "recall_by_state.png").read_bytes().startswith(b"\x89PNG")
    assert len(pd.read_csv(folder / "figures" / "recall_by_state.csv")) == ARCHITECTURES
    by_pairs = pd.read_csv(folder / "figures" / "accuracy_by_kv_pairs.csv")
    assert set(by_pairs["num_kv_pairs"]) == {1, 2, 4}


def test_the_points_of_the_figure_are_those_of_the_records(studied):
    """The learning rate of each architecture is the one that is best on validation; its accuracy is that on test."""
    folder, _ = studied
    best = {}
    for path in (folder / "runs").glob("*/result.json"):
        record = json.loads(path.read_text())
        config = record["config"]
        architecture = (record["family"], config.get("mixer.window_size"), config.get("mixer.feature_dim"))
        metrics = record["metrics"]
        best.setdefault(architecture, []).append((metrics["validation_accuracy"], metrics["accuracy"], record["state"]))
    table = pd.read_csv(folder / "figures" / "recall_by_state.csv")
    drawn = sorted(zip(table["state.bytes"], table["accuracy"].round(9), strict=True))
    candidates = []
    for runs in best.values():
        top = max(validation for validation, *_ in runs)
        candidates.append({(s["bytes"], round(a, 9)) for v, a, s in runs if v == top})  # a tie may go either way
    assert len(candidates) == ARCHITECTURES
    for point in drawn:
        assert any(point in candidate for candidate in candidates), point
    assert {state for state, _ in drawn} == {state for candidate in candidates for state, _ in candidate}
