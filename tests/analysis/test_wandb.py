"""Runs from wandb and studies to it, offline; online through an object that answers as wandb's does."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from pandas.testing import assert_frame_equal

import analysis
from analysis.figures import recall_by_state
from analysis.wandb_export import TYPE
from analysis.wandb_runs import NoWandbError, WandbError, _log_records

ROOT = Path(analysis.__file__).parents[1]

OLD_LOGS = """
import wandb

def log(name, accuracies, exit_code=0, **config):
    quiet = wandb.Settings(silent=True)
    run = wandb.init(project="old", mode="offline", id=name, reinit="create_new", settings=quiet)
    run.config.update({"run_id": name, "seed": 1, **config}, allow_val_change=True)
    run.log({"num_parameters": 100, "state_size": config["width"] * 64, "weights": wandb.Histogram([1, 2])})
    for a in accuracies:
        run.log({"train/loss": 1 - a, "valid/accuracy": a, "valid/loss": 2 - a, "valid/num_kv_pairs/accuracy-4": a})
    run.finish(exit_code)

def model(name):
    return {"name": name, "d_model": 64, "sequence_mixer": {"name": f"zoology.mixers.{name}", "kwargs": {"d": [1, 2]}}}

log("a", [0.2, 0.5], model=model("based"), learning_rate=0.01, width=2, note="long " * 20_000)
log("b", [0.2, 0.7], model=model("based"), learning_rate=0.03, width=2, note="long " * 20_000)
log("c", [0.9], model=model("attention"), learning_rate=0.01, width=8, note="")
log("d", [], 1, model=model("attention"), learning_rate=10.0, width=8, note="")
"""
"""Runs as zoology logs them: a and b differ in learning rate, d failed."""


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """A folder of wandb's offline mode, of someone who never logged in, and the environment to go on there."""
    folder = tmp_path_factory.mktemp("wandb")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    own = {"HOME": str(folder / "home"), "NETRC": str(folder / "none"), "PYTHONPATH": str(ROOT)}
    environment = {**kept, **own, "WANDB_DATA_DIR": str(folder / "data"), "WANDB_CACHE_DIR": str(folder / "cache")}
    subprocess.run([sys.executable, "-c", OLD_LOGS], cwd=folder, env=environment, check=True)
    return folder, environment


def test_old_logs_draw_a_frontier(offline, caplog, tmp_path):
    runs = analysis.from_wandb(offline[0], study="old")
    scored = "one accuracy is both validation and test: a learning rate is chosen on what it is scored on"
    assert caplog.messages == [scored]
    by_id = runs.set_index("identity")
    assert by_id["status"].to_dict() == {"a": "completed", "b": "completed", "c": "completed", "d": "failed"}
    b = by_id.loc["b"]
    assert (b["study"], b["family"], b["seed"], b["train.learning_rate"]) == ("old", "based", 1, 0.03)
    assert (b["accuracy"], b["loss"], b["train/loss"]) == pytest.approx((0.7, 1.3, 0.3))
    assert (b["state.elements"], b["state.bytes"], b["state.dtype"], b["cost.parameters"]) == (128, 512, "float32", 100)
    assert (b["model.d_model"], b["model.sequence_mixer.kwargs.d"], b["config.width"]) == (64, [1, 2], 2)
    assert b["config.note"] == "long " * 20_000  # longer than a block of the file
    assert b["slices"] == [{"num_kv_pairs": 4, "accuracy": 0.7}]
    assert b["provenance.wandb"] == "old/b"
    assert by_id["reason"].dropna().to_dict() == {"d": "wandb says failed"}
    assert not {"weights", "config.run_id", "run_id", "learning_rate", "valid/accuracy"} & {*runs}
    points = analysis.points(runs)
    assert points[["family", "accuracy"]].dropna().values.tolist() == [["attention", 0.9], ["based", 0.7]]
    assert analysis.frontier(points).sum() == 2
    recall_by_state.draw(runs)
    analysis.save(runs, tmp_path / "old.parquet")
    assert_frame_equal(analysis.load(tmp_path / "old.parquet", study="old"), runs)


def test_keys_of_ones_own_come_first(offline):
    keys = {"accuracy": "valid/num_kv_pairs/accuracy-4", "state.bytes": "width", "task.name": "note"}
    runs = analysis.from_wandb([offline[0]], keys=keys).set_index("identity")
    assert runs.loc["a", "state.bytes"] == 2
    assert runs.loc["a", "task.name"].startswith("long")
    with pytest.raises(WandbError, match=r"no run has 'val_acc', given for 'accuracy'; they have .*valid/accuracy"):
        analysis.from_wandb(offline[0], keys={"accuracy": "val_acc"})


def test_a_torn_file_is_a_run_that_has_not_ended_and_another_is_named(offline, caplog, tmp_path):
    (whole,) = offline[0].rglob("run-a.wandb")
    content = whole.read_bytes()
    file = tmp_path / "run-a.wandb"
    for length in (7, 60, 32768 - 3, 40_000, len(content) - 5):
        file.write_bytes(content[:length])
        with pytest.raises(analysis.NoRecordsError, match="no runs of wandb"):
            analysis.from_wandb(file)
    with pytest.raises(analysis.NoRecordsError, match="but 1 that have not ended"):
        analysis.from_wandb(file)
    assert len(analysis.from_wandb([file, offline[0]])) == 4
    assert "1 runs that have not ended are left out" in caplog.messages
    file.write_bytes(content)
    assert len(analysis.from_wandb(file)) == 1
    for broken in (b"no log", content[:7] + b"\0\0\0\0\3\0\1abc"):
        file.write_bytes(broken)
        with pytest.raises(analysis.BrokenRecordError, match=str(file)):
            analysis.from_wandb(file)


class Summary:
    """Mapping-like, as wandb's is: nested, and no dict."""

    def __init__(self, values):
        self.values = values

    def keys(self):
        return self.values.keys()

    def items(self):
        return [(key, Summary(value) if isinstance(value, dict) else value) for key, value in self.values.items()]


def online_run(name, state, config, summary, job=None):
    answers = {"config": config, "summary": Summary(summary), "created_at": "2026-01-01T00:00:00Z", "job_type": job}
    return SimpleNamespace(id=name, path=["group", "old", name], state=state, **answers)


def test_a_project_online(monkeypatch):
    config = {"model": {"name": "gla"}, "optimizer": {"lr": 0.1}, "seed": 3, "data": {"name": "mqar"}}
    summary = {"_runtime": 12.5, "_step": 7, "test": {"acc": 0.8}, "val/accuracy": 0.75, "state_bytes": 96}
    runs = [
        online_run(
            "x", "finished", config, {**summary, "grad": {"_type": "histogram", "bins": [1]}, "gap": float("nan")}
        ),
        online_run("y", "crashed", config, {}),
        online_run("z", "running", config, summary),
        online_run("export", "finished", {}, {}, "recallbench-export"),
    ]
    asked = []
    api = SimpleNamespace(runs=lambda path, lazy: asked.append((path, lazy)) or runs)
    monkeypatch.setattr(wandb, "Api", lambda: api)
    found = analysis.from_wandb("group/old", keys={"accuracy": "test.acc"}).set_index("identity")
    assert asked == [("group/old", False)]
    assert found["status"].to_dict() == {"x": "completed", "y": "failed"}
    x = found.loc["x"]
    assert (x["family"], x["train.learning_rate"], x["seed"], x["data.name"]) == ("gla", 0.1, 3, "mqar")
    assert (x["accuracy"], x["validation_accuracy"], x["state.bytes"]) == (0.8, 0.75, 96)
    assert (x["cost.seconds"], x["cost.steps"], x["provenance.wandb"]) == (12.5, 7, "group/old/x")
    assert found.loc["y", ["accuracy", "state.bytes"]].isna().all()
    assert not {"optimizer.lr", "grad", "gap"} & {*found}

    def refuse(path, lazy):
        raise wandb.errors.CommError("no such project")

    monkeypatch.setattr(api, "runs", refuse)
    with pytest.raises(analysis.NoRecordsError, match="'group/old' cannot be read: no such project"):
        analysis.from_wandb("group/old")


def test_what_cannot_be_had_is_one_sentence(monkeypatch, offline, tmp_path):
    for nowhere in (tmp_path / "nowhere", "./nowhere", "a/b/c", "../a"):
        with pytest.raises(analysis.NoRecordsError, match="neither a folder, nor a file, nor a project"):
            analysis.from_wandb(nowhere)
    runs = analysis.from_wandb(offline[0])
    with pytest.raises(WandbError, match="'a study'"):
        analysis.to_wandb(runs, study="a study")
    with pytest.raises(WandbError, match=r"missing\.png: not there"):
        analysis.to_wandb(runs, study="old", files=[tmp_path / "missing.png"])
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(WandbError, match="WANDB_MODE is disabled"):
        analysis.to_wandb(runs, study="old")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "wandb.proto.wandb_internal_pb2", None)
    for ask in (
        lambda: analysis.from_wandb(offline[0]),
        lambda: analysis.from_wandb("group/old"),
        lambda: analysis.to_wandb(runs, study="old"),
    ):
        with pytest.raises(NoWandbError, match="pip install"):
            ask()


def test_import_and_export_from_the_command_line(offline):
    """There and back: the artifact holds the Parquet file and the figures, and no export is ever imported."""
    from wandb.proto.wandb_internal_pb2 import Record

    folder, environment = offline

    def call(*arguments):
        command = [sys.executable, "-m", "analysis", *map(str, arguments)]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    done = call("import-wandb", "wandb", "--key", "accuracy=valid/accuracy", "--study", "old", "--out", "old.parquet")
    assert (done.returncode, done.stdout) == (0, "4 runs: old.parquet\n")
    again = call("import-wandb", "wandb", "--out", "old.parquet")
    assert (again.returncode, again.stderr.splitlines()[-1]) == (2, "old.parquet exists and is not written over")
    (folder / "figures").mkdir()
    (folder / "figures" / "recall.png").write_bytes(b"a figure")
    done = call("export-wandb", "old.parquet", "--study", "old", "--files", "figures")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 runs: ")
    written = Path(done.stdout.removeprefix("4 runs: ").partition(", for wandb sync")[0])
    (file,) = written.glob("*.wandb")
    found = [Record.FromString(content) for content in _log_records(file.read_bytes())]
    (artifact,) = [record.artifact for record in found if record.HasField("artifact")]
    assert (artifact.name, artifact.type) == ("old", TYPE)
    entries = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    assert sorted(entries) == ["figures/recall.png", "old.parquet"]
    back = folder / "back.parquet"
    back.write_bytes(entries["old.parquet"].read_bytes())
    assert_frame_equal(analysis.load(back), analysis.load(folder / "old.parquet"))
    assert len(analysis.from_wandb(folder)) == 4
