"""`python -m recallbench.throughput` as a user calls it, and what others make of its records."""

import json
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra

import analysis
from analysis.__main__ import main as analyse
from recallbench.__main__ import main
from sweeps.__main__ import main as sweeps
from sweeps.launches import commands_for, launch_folder, write_command

TINY = [
    "throughput.prompt_length=8",
    "throughput.generate=4",
    "throughput.vocab_size=32",
    "throughput.passes=1",
    "throughput.dtype=float32",
    "model.d_model=8",
    "device=cpu",
]


@pytest.fixture
def measure(call, monkeypatch, capsys):
    """`python -m recallbench.throughput` with some arguments, in the folder and the process of `call`."""

    def called(*arguments):
        GlobalHydra.instance().clear()
        flags = [argument for argument in arguments if argument.startswith(("-", "/"))]  # Hydra wants them first
        own = [argument for argument in arguments if argument not in flags]
        monkeypatch.setattr(sys, "argv", ["throughput", *flags, *TINY, *own, "hydra/launcher=basic"])
        capsys.readouterr()
        try:
            main("throughput")
            status = 0
        except SystemExit as ended:
            status = ended.code
        return status, *capsys.readouterr()

    return called


def known(records):
    """Identity -> settings and metrics, without those that are null, which Parquet leaves out."""
    told = {record["identity"]: {**record["config"], **record["metrics"]} for record in records}
    return {run: {name: value for name, value in of.items() if value is not None} for run, of in told.items()}


STUDY = """
# @package _global_
study: mine
hydra:
  mode: MULTIRUN
  sweeper:
    params: {throughput.kind: [prefill, decode]}
    grids: [{mixer: [attention, mamba]}]
"""


def records(runs):
    return [json.loads(path.read_text()) for path in sorted(runs.glob("*/result.json"))]


def test_one_measurement_and_its_record_the_next_time(measure, tmp_path):
    status, out, err = measure("mixer=attention")
    assert (status, err) == (0, "")
    (record,) = records(tmp_path / "runs")
    said = f"{record['metrics']['tokens_per_second']:,.0f} tokens/s"
    assert said in out
    status, out, err = measure("mixer=attention")
    assert (status, err) == (0, "")
    assert said in out
    assert "it has a record already; rerun=true runs it again" in out
    assert records(tmp_path / "runs") == [record]


def test_a_sweep_measures_what_is_missing_and_is_seen_by_others(measure, call, tiny, monkeypatch, capsys, tmp_path):
    (tmp_path / "conf" / "study").mkdir(parents=True)
    (tmp_path / "conf" / "study" / "mine.yaml").write_text(STUDY)
    sweep = ("--config-dir", str(tmp_path / "conf"), "+study=mine")
    status, _, err = measure(*sweep, "throughput.batch_size=1,2")
    assert (status, err) == (0, "")
    before = records(tmp_path / "runs")
    assert len(before) == 8
    status, out, _ = measure(*sweep, "throughput.batch_size=1,2,3")
    assert (status, out.splitlines()[0]) == (0, "mine: 12 runs, 8 done, 4 to go")
    assert all(record in records(tmp_path / "runs") for record in before)
    assert measure(*sweep, "throughput.batch_size=1,2,3")[1] == "mine: 12 runs, 12 done, 0 to go\n"

    def command(function, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        assert function() == 0
        return capsys.readouterr().out

    assert "nothing left to run" in command(sweeps, "status", "mine")
    assert "12 runs in mine.parquet" in command(sweeps, "export", "mine")
    (module, *_), *more = commands_for(launch_folder("runs", "mine"), {record["identity"] for record in before})
    assert (module, more) == ("recallbench.throughput", [])

    runs = analysis.load("mine.parquet")
    assert set(runs["throughput.batch_size"]) == {1, 2, 3}
    assert (runs["tokens_per_second"] > 0).all()
    taken = command(sweeps, "import", "mine.parquet", "--runs", "elsewhere")
    assert "12 of 12 runs are new in elsewhere" in taken
    here, there = (known(records(tmp_path / runs)) for runs in ("runs", "elsewhere"))
    assert there == here

    told = command(analyse, "figures", "runs", "--out", "figures")
    assert "recall_by_state: left out, no run has completed with both an accuracy and a measured state" in told
    assert "throughput_by_batch.png" in told
    assert call(*tiny("mixer=attention")).status == 0
    both = analysis.load("runs")
    assert len(both) == 13
    alone = analysis.points(both.loc[both["accuracy"].notna()].dropna(axis="columns", how="all"))
    points = analysis.points(both)
    assert points["accuracy"].tolist() == alone["accuracy"].tolist()
    assert not [name for name in points if name.startswith("throughput.")]
    assert "recall_by_state: figures" in command(analyse, "figures", "runs", "--out", "figures")


MISTAKES = [
    ("throughput.batch=2", "throughput.batch is '2': there is no such setting; did you mean throughput.batch_size?"),
    ("throughput.batch_size=largest", "throughput.batch_size is 'largest': it needs a GPU, "),
    (
        "throughput.passes=0 mixer.num_heads=3",
        "throughput.passes is 0: it should be greater than 0\nmixer.num_heads",
    ),
    ("throughput.device_name=H100", "throughput.device_name is 'H100': the device here is "),
    ("+study=quick", "+study=quick chooses a task, which is no part of this command's configuration"),
    ("+task=mqar", "throughput is 'part of a training': measurements are those of python -m recallbench.throughput"),
    ("-m throughput.batch_size=2,0", "throughput.batch_size is 0: it must be a whole number from 1, or largest"),
    ("members=3", "members is 3: it should be a valid list"),
]


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES, ids=[arguments for arguments, _ in MISTAKES])
def test_a_mistake_is_said_in_a_sentence_and_nothing_is_measured(arguments, expected, measure, tmp_path):
    status, out, err = measure(*arguments.split())
    assert (status, out) == (2, ""), err
    for line, start in zip(err.splitlines(), expected.splitlines(), strict=True):
        assert line.startswith(start)
    assert list(tmp_path.iterdir()) == []


def test_commands_of_before_there_were_measurements_are_trainings(tmp_path):
    write_command(tmp_path, "recallbench", ["seed=1"], ["a"])
    (path,) = (tmp_path / "commands").iterdir()
    command = json.loads(path.read_text())
    del command["module"]
    path.write_text(json.dumps(command))
    assert commands_for(tmp_path, {"a"}) == [["recallbench", "seed=1"]]
