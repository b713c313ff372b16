"""A process killed without notice, at any moment, costs what it did since its last checkpoint and nothing else."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import recallbench

ROOT = Path(recallbench.__file__).parents[1]

EVERY_MOMENT = """
import io, itertools, json, os, signal, sys
from pathlib import Path
import torch
from recallbench.execution import ExecutionConfig
from recallbench.run import runs_of
from recallbench.execute import execute
from recallbench.interrupt import StopRequest
from recallbench.record import write_study

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
root, members = Path(sys.argv[1]), runs_of(json.loads(sys.argv[2]))


def study(folder):
    write_study(folder, "small", [run.identity for run in members])
    execute(members, ExecutionConfig(runs=str(folder), device="cpu", checkpoint_seconds=0), StopRequest())


def in_a_process(folder, last_moment=None):
    "The study in a process of its own, which is killed where it would touch the disk for the n-th time."
    child = os.fork()
    if not child:
        moments = itertools.count()
        def live_or_die():
            if next(moments) == last_moment:
                os.kill(os.getpid(), signal.SIGKILL)
        def before(act):
            return lambda *arguments, **options: (live_or_die(), act(*arguments, **options))[1]
        for name in ("fsync", "replace", "link", "unlink"):
            setattr(os, name, before(getattr(os, name)))
        def open_and(file, mode="r", *options, openly=io.open, **more):
            opened = openly(file, mode, *options, **more)
            if "w" in mode:
                live_or_die()  # while the file is empty
            return opened
        io.open = open_and
        study(folder)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


study(root / "whole")
for moment in itertools.count():
    folder = root / f"killed_{moment:02}"
    status = in_a_process(folder, moment)
    left = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.json")}
    (root / f"left_{moment:02}.json").write_text(json.dumps(left))
    if status == 0:
        break
    assert status == -signal.SIGKILL, status
    assert in_a_process(folder) == 0
"""


def results(runs):
    """What each record and log say of the result; a file that is not whole does not parse."""
    found = {}
    for path in runs.glob("*/result.json"):
        record = json.loads(path.read_text())
        log = [json.loads(line) for line in path.with_name("log.jsonl").read_text().splitlines()]
        cost = {key: record["cost"][key] for key in ("steps", "tokens", "parameters")}
        for entry in log:
            del entry["seconds"]
        parts = ("identity", "status", "config", "metrics", "slices", "state")
        found[path.parent.name] = {**{part: record[part] for part in parts}, "log": log, "cost": cost}
    return found


def test_a_study_killed_at_any_of_its_writes_ends_the_same(tiny, numbers, tmp_path):
    """With each file still empty, before and after it is on disk, and with its name put in its place or not.

    In float64, since members that were parted by it go on with another order of summation.
    """
    members = [{"learning_rate": rate, "seed": 0} for rate in (0.01, 0.02)]
    config = tiny({"members": members, "train.epochs": 2, "task.num_examples": 16, "train.stop_at_accuracy": None})
    subprocess.run([sys.executable, "-c", EVERY_MOMENT, str(tmp_path), json.dumps(config)], cwd=ROOT, check=True)
    expected = results(tmp_path / "whole")
    manifest = (tmp_path / "whole" / "studies" / "small.json").read_text()
    assert set(json.loads(manifest)["identities"]) == set(expected)
    assert len(expected) == 2
    moments = sorted(tmp_path.glob("killed_*"))
    assert len(moments) > 3 * 2 * 4  # for each member's checkpoints alone
    for runs in moments:
        assert numbers(results(runs)) == pytest.approx(numbers(expected), rel=1e-5, abs=1e-9), runs.name
        assert (runs / "studies" / "small.json").read_text() == manifest, runs.name
        for text in json.loads((tmp_path / f"left_{runs.name[-2:]}.json").read_text()).values():
            assert json.loads(text)  # whatever bore its final name when the process died was whole
        identities = {path.name for path in runs.iterdir()} - {"studies"}
        assert identities == set(expected)
    early = [len(json.loads(path.read_text())) for path in sorted(tmp_path.glob("left_*.json"))]
    assert early[0] == 0  # the first was killed before anything was there
    assert early[-1] == 3  # and the last not at all


LONG = [
    "task.vocab_size=32",
    "task.sequence_length=32",
    "task.num_kv_pairs=4",
    "task.num_examples=1024",
    "task.num_test_examples=32",
    "model.d_model=8",
    "mixer=attention",
    "train.batch_size=8",
    "train.epochs=4",
    "train.stop_at_accuracy=null",
]
"""512 steps."""


def start(runs, *overrides):
    command = [sys.executable, "-m", "recallbench", *LONG, f"runs={runs}", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def saved(runs):
    """When the last checkpoint was written."""
    return max((path.stat().st_mtime_ns for path in runs.glob("*/checkpoint.pt")), default=0)


def test_a_command_killed_at_random_moments_ends_the_same(tmp_path):
    """Three times, a few steps on each time: the next checkpoint being written, the batch being read, or between."""
    killed, moments = tmp_path / "killed", random.Random(0)
    for _ in range(3):
        process, steps, last = start(killed, "checkpoint_seconds=0"), moments.randint(1, 8), saved(killed)
        while steps:
            assert process.poll() is None, "it ended before it was killed"
            steps, last = steps - (saved(killed) != last), saved(killed)
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not list(killed.glob("*/result.json"))
    assert saved(killed) > 0
    assert [start(killed).wait(), start(tmp_path / "whole").wait()] == [0, 0]
    assert results(killed) == results(tmp_path / "whole")
    (record,) = killed.glob("*/result.json")
    assert json.loads(record.read_text())["status"] == "completed"
