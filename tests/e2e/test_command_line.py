"""`python -m recallbench` as a user calls it: what is wrong is said in a sentence, what is done is not done again."""

import json
import logging
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import PositiveInt

import recallbench
from models.mixers import ALL_MIXERS
from models.mixers.attention import Attention
from recallbench.claim import take

WHOLE = "it must be a whole number from 0 to 2^64 - 1"
SWEEP = "it must be one value; a sweep over several is asked for with -m"

MISTAKES = [
    # misspelt
    (
        "train.learning_rat=0.1",
        "train.learning_rat is '0.1': there is no such setting; did you mean train.learning_rate?",
    ),
    ("mixer.window_sise=3", "mixer.window_sise is '3': there is no such setting; did you mean mixer.window_size?"),
    ("modle.d_model=3", "modle.d_model is '3': there is no such setting; did you mean model.d_model?"),
    ("mixr=based", "mixr is 'based': there is no such setting; did you mean mixer?"),
    ("mixer=basd", "mixer is 'basd': it must be one of attention, based, "),
    ("mixer=", "mixer is '': it must be one of attention, based, "),
    ("task=mqr", "task is 'mqr': it must be one of extraction, fda, lm, "),
    ("logger=tensorboard", "logger is 'tensorboard': it must be one of none, wandb"),
    ("+study=nope", "study is 'nope': it must be one of "),
    ("study=quick", "study is 'quick': a configuration of this group is added, as +study=quick"),
    ("model.layers=[mixr]", "model.layers[0].name is 'mixr': it must be one of attention, based, "),
    ("+study=quick train.epoch=1,2", "train.epoch is '1,2': there is no such setting; did you mean train.epochs?"),
    (
        "+study=quick mixer=retnet",
        "mixer.window_size: an axis of the study, but no setting with +study=quick mixer=retnet; there are ",
    ),
    ("+unknown=1", "unknown is 1: there is no such setting; there are "),
    ("+mixer.unknown=1", "mixer.unknown is 1: there is no such setting; there are "),
    ("+train.epoch=1", "train.epoch is 1: there is no such setting; did you mean epochs?"),
    ("+mixer.d_model=4", "mixer.d_model is 4: it must be left to model.d_model"),
    # of the wrong type
    ("train.epochs=two", "train.epochs is 'two': it should be a valid integer"),
    ("train.epochs=1.5", "train.epochs is 1.5: it should be a valid integer"),
    ("train.epochs=null", "train.epochs is None: it should be a valid integer"),
    ("task.num_examples=1e3", "task.num_examples is 1000.0: it should be a valid integer"),
    ("seed=abc", f"seed is 'abc': {WHOLE}"),
    ("seed=true", f"seed is True: {WHOLE}"),
    ("seed=null", "seed is None: it must be given"),
    ("rerun=maybe", "rerun is 'maybe': it should be a valid boolean"),
    ("runs=5", "runs is 5: it should be a valid string"),
    ("model.family=5", "model.family is 5: it must be a word, or null"),
    ("task.train=3", "task.train is 3: it should be a valid list"),
    ("task.train=[3]", "task.train.0 is 3: it should be a valid dictionary"),
    ("members=3", "members is 3: it should be a valid list"),
    ("model.layers=mixer", "model.layers is 'mixer': "),
    ("model.layers=[3]", "model.layers[0] is 3: it must be the name of a mixer, or a mapping of its name and settings"),
    ("mixer=null", "mixer is 'null': it must be the name of a file in conf/mixer/"),
    ("train=5", "train is '5': it must be the name of a file in conf/train/"),
    # out of range
    ("train.epochs=0", "train.epochs is 0: it should be greater than 0"),
    ("train.learning_rate=-1", "train.learning_rate is -1: it should be greater than 0"),
    ("train.learning_rate=inf", "train.learning_rate is inf: it should be a finite number"),
    ("train.weight_decay=nan", "train.weight_decay is nan: it should be "),
    ("train.stop_at_accuracy=1.5", "train.stop_at_accuracy is 1.5: it should be less than or equal to 1"),
    ("mixer.window_size=0", "mixer.window_size is 0: it should be greater than 0"),
    ("mixer.feature_map=exp", "mixer.feature_map is 'exp': it must be one of taylor, "),
    ("model.norm=batch", "model.norm is 'batch': it should be 'layer' or 'rms'"),
    ("model.layers=[]", "model.layers is []: it should have at least 1 item"),
    ("checkpoint_seconds=-1", "checkpoint_seconds is -1: it should be greater than or equal to 0"),
    ("seed=-1", f"seed is -1: {WHOLE}"),
    ("seed=18446744073709551616", f"seed is 18446744073709551616: {WHOLE}"),
    ("task.power=inf", "task.power is inf: it should be a finite number"),
    ("sweep.time_budget=soon", "sweep.time_budget is 'soon': it must be a time such as 90s, 9min, 1.5h or 2d, or null"),
    ("sweep.time_budget=0", "sweep.time_budget is 0: it must be a time such as 90s, 9min, 1.5h or 2d, or null"),
    ("sweep.runs_per_task=0", "sweep.runs_per_task is 0: it should be greater than 0"),
    # at odds with another setting, or with the machine
    ("mixer.num_heads=3", "mixer.num_heads is 3: it must divide the model width d_model = 8"),
    (
        "task.num_kv_pairs=8",
        "task.num_kv_pairs is 8: a sequence of length 16 holds at most 4 pairs and their questions",
    ),
    ("task.vocab_size=4", "task.vocab_size is 4: 2 distinct keys need a vocabulary of at least 6 tokens"),
    ("task.test=[]", "task.test is []: it should have at least 1 item"),
    (
        "task.train=[{sequence_length:16,num_kv_pairs:2,num_examples:4}]",
        "task.test is None: segments must be given for both train and test, or for neither",
    ),
    (
        "model=based mixer=attention",
        "model.layers[1].feature_dim is '${mixer.feature_dim}': mixer.feature_dim does not",
    ),
    ("seed=${nowhere}", "seed is '${nowhere}': nowhere does not exist; choose a configuration that has it"),
    ("device=gpu", "device is 'gpu': it must be auto, cpu, cuda or cuda:INDEX"),
    ("device=cuda:99", "device is 'cuda:99': this machine has "),
    ("~mixer", "mixer is None: it must be given"),
    # not an override
    ("=3", "an override is '=3': it must be written SETTING=VALUE"),
    ("mixer", "'mixer' cannot be read: an override is written SETTING=VALUE"),
    ("seed=[1,2", "'seed=[1,2' cannot be read: an override is written SETTING=VALUE"),
    ("mixer.feature_dim=1,2", f"mixer.feature_dim is '1,2': {SWEEP}"),
    ("seed=choice(1,2)", f"seed is 'choice(1,2)': {SWEEP}"),
    # several at once
    (
        "task.train=[{sequence_length:16}] train.epochs=0",
        "task.train.0.num_kv_pairs is None: it must be given\n"
        "task.train.0.num_examples is None: it must be given\n"
        "train.epochs is 0: it should be greater than 0",
    ),
    (
        "mixer=null task=null",
        "mixer is 'null': it must be the name of a file in conf/mixer/\n"
        "task is 'null': it must be the name of a file in conf/task/",
    ),
    # at some points of a sweep
    ("-m mixer.window_size=0,4", "mixer.window_size is 0: it should be greater than 0"),
    (
        "-m mixer.num_heads=3,1,5 seed=0,1",
        "mixer.num_heads is 3: it must divide the model width d_model = 8\n"
        "mixer.num_heads is 5: it must divide the model width d_model = 8",
    ),
    ("-m mixer=based,nope", "mixer is 'nope': it must be one of attention, based, "),
    ("-m seed=1,", "'seed=1,' cannot be read: an override is written SETTING=VALUE"),
    ("-m mixer.windw_size=1,2", "mixer.windw_size is '1,2': there is no such setting; did you mean mixer.window_size?"),
]


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES, ids=[arguments for arguments, _ in MISTAKES])
def test_a_mistake_is_said_in_a_sentence_and_nothing_is_run(arguments, expected, call, tiny, tmp_path):
    done = call(*tiny(*arguments.split()))
    assert done.status == 2, done
    assert done.out == ""
    assert len(done.err.splitlines()) == len(expected.splitlines()), done.err
    for line, start in zip(done.err.splitlines(), expected.splitlines(), strict=True):
        assert line.startswith(start)
    assert list(tmp_path.iterdir()) == []


def test_the_loggers_of_a_process_stay_as_they_were(call, tiny, caplog):
    log = logging.getLogger("of_someone_else")
    assert call(*tiny("mixer=attention")).status == 0
    log.warning("still heard")
    assert caplog.messages == ["still heard"]


def test_a_mistake_ends_the_process_with_status_2(tmp_path):
    """With nothing of Hydra's around the sentence."""
    root = str(Path(recallbench.__file__).parents[1])
    command = [sys.executable, "-m", "recallbench", "mixer.window_size=0"]
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mixer.window_size is 0: it should be greater than 0\n"
    assert list(tmp_path.iterdir()) == []


def records(runs):
    return [json.loads(path.read_text()) for path in sorted(runs.glob("*/result.json"))]


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_one_run_by_default_in_the_folder_runs(call, tiny, tmp_path):
    done = call(*tiny("mixer=attention"))
    assert (done.status, done.err) == (0, "")
    (record,) = records(tmp_path / "runs")
    accuracy = record["metrics"]["accuracy"]
    assert f"completed  accuracy {accuracy:.3f}  state 1.062 KiB  attention runs/{record['identity']}" in done.out
    before = files(tmp_path)
    again = call(*tiny("mixer=attention"))
    assert "it has a record already; rerun=true runs it again" in again.out
    assert f"accuracy {accuracy:.3f}" in again.out
    assert files(tmp_path) == before
    assert call(*tiny("mixer=attention", "rerun=true")).status == 0
    assert len(list(tmp_path.glob("runs/*/earlier/*.result.json"))) == 1


def test_a_run_that_another_process_holds_is_left_to_it(call, tiny, tmp_path):
    assert call(*tiny("mixer=attention", "runs=before")).status == 0
    (identity,) = (path.name for path in (tmp_path / "before").iterdir())
    claim = take(tmp_path / "runs" / identity)
    done = call(*tiny("mixer=attention"))
    claim.release()
    assert done.status == 1
    assert f"attention runs/{identity} is left to process {os.getpid()} on {platform.node()}, since 2" in done.err
    assert call(*tiny("mixer=attention")).status == 0
    assert len(records(tmp_path / "runs")) == 1


def test_a_sweep_that_others_are_at_says_so(call, tiny, tmp_path):
    sweep = tiny("-m", "mixer=attention", "model.d_model=8,16")
    assert call(*sweep, "runs=before").status == 0
    identities = [path.name for path in (tmp_path / "before").iterdir()]
    claim = take(tmp_path / "runs" / identities[0])
    done = call(*sweep)
    claim.finish()
    assert done.status == 0
    assert done.out.splitlines()[-1] == "sweep: 1 run done, 1 left (1 of them held by another process)"
    assert call(*sweep).out.splitlines()[-1] == "sweep: 2 runs done"


def test_a_sweep_runs_what_is_missing_and_nothing_twice(call, tiny, tmp_path):
    sweep = [*tiny("-m", "mixer=based", "mixer.window_size=4", "mixer.feature_dim=2,4", "task.num_kv_pairs=1,2")]
    done = call(*sweep)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("sweep: 4 runs, 0 done, 4 to go\n")
    found = {(r["config"]["mixer.feature_dim"], r["config"]["task.num_kv_pairs"]) for r in records(tmp_path / "runs")}
    assert found == {(2, 1), (2, 2), (4, 1), (4, 2)}
    for line in ("mixer.feature_dim=2 task.num_kv_pairs=1", "mixer.feature_dim=4 task.num_kv_pairs=2"):
        assert any(set(line.split()) <= set(said.split()) for said in done.out.splitlines())

    before = files(tmp_path / "runs")
    again = call(*sweep)
    assert (again.status, again.out) == (0, "sweep: 4 runs, 4 done, 0 to go\n")
    assert files(tmp_path / "runs") == before
    more = call(*sweep[:-2], "mixer.feature_dim=2,4,8", "task.num_kv_pairs=1,2")
    assert more.out.startswith("sweep: 6 runs, 4 done, 2 to go\n")
    assert files(tmp_path / "runs").items() >= before.items()
    assert len(records(tmp_path / "runs")) == 6


def test_seeds_and_learning_rates_are_members_with_the_records_of_runs_alone(call, tiny, tmp_path):
    axes = ("seed=0,1", "train.learning_rate=0.001,0.01")
    assert call(*tiny("-m", "mixer=attention", "runs=together", *axes)).status == 0
    together = {record["identity"]: record for record in records(tmp_path / "together")}
    assert len(together) == 4
    assert {record["provenance"]["members"] for record in together.values()} == {4}
    one = ("seed=1", "train.learning_rate=0.01")
    assert call(*tiny("mixer=attention", "runs=alone", *one)).status == 0
    (alone,) = records(tmp_path / "alone")
    same = together[alone["identity"]]
    assert same["config"] == alone["config"]
    assert same["metrics"]["loss"] == pytest.approx(alone["metrics"]["loss"], rel=1e-3)


STUDY = """
# @package _global_
defaults: [{override /model: two_layer}]
study: mine
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      train.learning_rate: [0.001, 0.01]
    grids:
      - mixer: attention
      - {mixer: based, mixer.feature_dim: [2, 4], mixer.window_size: 4}
      - {mixer: [attention, short_conv]}
      - {model.layers: [[short_conv, {name: attention, num_heads: 1, num_kv_heads: null}], [attention]]}
"""


@pytest.fixture
def with_study(tmp_path_factory):
    """Arguments that make the study `mine` known."""
    folder = tmp_path_factory.mktemp("configurations")
    (folder / "study").mkdir()
    (folder / "study" / "mine.yaml").write_text(STUDY)
    return ["--config-dir", str(folder), "+study=mine"]


def manifest(runs):
    return json.loads((runs / "studies" / "mine.json").read_text())["identities"]


def test_a_study_is_a_union_without_repetition(call, tiny, with_study, tmp_path):
    """Of its twelve points, two are attention again, and two more are attention after a short convolution by name."""
    done = call(*with_study, *tiny())
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("mine: 10 runs, 0 done, 10 to go\n")
    found = {record["identity"]: record for record in records(tmp_path / "runs")}
    assert set(manifest(tmp_path / "runs")) == set(found)
    assert len(found) == 10
    assert {record["study"] for record in found.values()} == {"mine"}
    layers = {json.dumps([layer["name"] for layer in record["config"]["model.layers"]]) for record in found.values()}
    assert len(layers) == 4
    assert {record["provenance"]["members"] for record in found.values()} == {2}
    assert call(*with_study, *tiny()).out == "mine: 10 runs, 10 done, 0 to go\n"


def test_the_command_line_replaces_an_axis_of_a_study(call, tiny, with_study, tmp_path):
    done = call(
        *with_study, *tiny("mixer.window_size=2", "train.learning_rate=0.1", "mixer=based", "model.layers=[mixer]")
    )
    assert (done.status, done.err) == (0, "")
    rows = [record["config"] for record in records(tmp_path / "runs")]
    assert {row["train.learning_rate"] for row in rows} == {0.1}
    assert {row["mixer.window_size"] for row in rows} == {2}
    assert {row["mixer.feature_dim"] for row in rows} == {2, 4, 16}  # 16 by default, where a grid says nothing
    before = manifest(tmp_path / "runs")
    call(*with_study, *tiny("mixer.window_size=2", "train.learning_rate=0.2", "mixer=based", "model.layers=[mixer]"))
    assert manifest(tmp_path / "runs")[: len(before)] == before
    assert len(manifest(tmp_path / "runs")) == 2 * len(before)


class Failing(Attention):
    """Attention that cannot be trained."""

    def __init__(self, d_model: PositiveInt):
        super().__init__(d_model)

    def forward(self, x):
        raise ArithmeticError("no attention today")


def test_a_run_that_fails_disturbs_no_other(call, tiny, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setitem(ALL_MIXERS, "failing", Failing)
    configurations = tmp_path_factory.mktemp("configurations")
    (configurations / "mixer").mkdir()
    (configurations / "mixer" / "failing.yaml").write_text("name: failing\n")
    done = call("--config-dir", str(configurations), *tiny("-m", "mixer=failing,attention", "seed=0,1"))
    assert done.status == 0
    found = records(tmp_path / "runs")
    assert sorted((r["family"], r["status"]) for r in found) == [
        ("attention", "completed"),
        ("attention", "completed"),
        ("failing", "failed"),
        ("failing", "failed"),
    ]
    assert {r["reason"] for r in found} == {None, "ArithmeticError: no attention today"}
    said = [line for line in done.out.splitlines() if line.startswith("failed")]
    assert len(said) == 2
    assert all("ArithmeticError: no attention today" in line for line in said)
    assert len(list(tmp_path.glob("runs/*/error.txt"))) == 2
