"""Weights and Biases beside the record: told the same, and changing nothing."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from pandas.testing import assert_frame_equal
from wandb.proto.wandb_internal_pb2 import Record

import analysis
import recallbench

BLOCK, WHOLE, LAST = 32768, 1, 4

PROGRAM = """
import json, sys, torch
from recallbench.execution import ExecutionConfig, LoggerConfig
from recallbench.run import runs_of
from recallbench.execute import execute
from recallbench.interrupt import StopRequest

torch.set_num_threads(1)
runs, logger = runs_of(json.loads(sys.argv[1])), LoggerConfig(name="wandb", project="here")
execute(runs, ExecutionConfig(runs="runs", device="cpu", logger=logger), StopRequest())
"""


def records(file):
    """The records of a .wandb file, which is LevelDB's log: in blocks, chunks of (crc, length, kind) and data."""
    content, at, data = file.read_bytes(), 7, b""  # after a header of wandb's own
    while at + 7 <= len(content):
        left = BLOCK - at % BLOCK
        if left < 7:  # too little for a chunk
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        data += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (WHOLE, LAST):
            yield Record.FromString(data)
            data = b""


def history(folder):
    """What wandb wrote in a folder for one run: its configuration, its steps and its summary."""
    (file,) = folder.glob("*.wandb")
    config, steps, summary = {}, [], {}
    for record in records(file):
        for item in record.run.config.update:
            config[item.key] = json.loads(item.value_json)
        for item in record.summary.update:
            summary[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        if record.history.item:
            items = record.history.item
            steps.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
    return config, steps, summary


@pytest.fixture
def without_login(tmp_path):
    """The environment of someone who never logged in, in a home and a working directory of their own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    root = str(Path(recallbench.__file__).parents[1])
    return {**environment, "HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "PYTHONPATH": root}


def test_wandb_without_a_login_writes_offline(without_login, tiny, carry_out, outcome, members, tmp_path):
    """Two members in one process have a wandb run each, and the records that they would have without."""
    pairs = [(0.01, 0), (0.003, 1)]
    config = tiny({"members": [{"learning_rate": rate, "seed": seed} for rate, seed in pairs]})
    command = [sys.executable, "-c", PROGRAM, json.dumps(config)]
    subprocess.run(command, cwd=tmp_path, env=without_login, check=True, capture_output=True)
    runs = members(pairs)
    expected = carry_out(tmp_path / "without", runs)
    found = carry_out(tmp_path / "runs", runs)  # reads the records that are there
    assert [outcome(record) for record in found] == [outcome(record) for record in expected]
    for run, record in zip(runs, found, strict=True):
        (folder,) = (tmp_path / "wandb").glob(f"offline-run-*-{run.identity}")
        config, steps, summary = history(folder)
        assert {key: config[key] for key in run.settings} == run.settings
        assert [step["epoch"] for step in steps] == [1, 2, 3]
        for step, entry in zip(steps, record["log"], strict=True):
            assert {key: step[key] for key in entry} == entry
            assert step["_step"] == entry["step"]
        assert summary["metrics.accuracy"] == record["metrics"]["accuracy"]
        assert summary["state.bytes"] == record["state"]["bytes"]
        assert summary["status"] == "completed"
    loaded = analysis.load(tmp_path / "runs").set_index("identity").sort_index()
    imported = analysis.from_wandb(tmp_path / "wandb").set_index("identity").sort_index()
    only_recorded = ["study", "state.layers", "cost.peak_memory_bytes"]
    same = [name for name in loaded if not name.startswith("provenance.") and name not in only_recorded]
    assert_frame_equal(imported[same], loaded[same], check_dtype=False)


def test_a_mode_of_wandbs_own_is_respected(without_login, tiny, tmp_path):
    command = [sys.executable, "-c", PROGRAM, json.dumps(tiny({"train.epochs": 1}))]
    environment = {**without_login, "WANDB_MODE": "disabled"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 1
    assert not list(tmp_path.glob("wandb/*run-*"))
