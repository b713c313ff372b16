"""What the README tells a newcomer to do works: one file and one YAML for a mixer, for a task, and nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import recallbench

ROOT = Path(recallbench.__file__).parents[1]
ROOMS = ("kernels", "models", "recallbench", "sweeps", "hydra_plugins", "conf")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the project with the files that the README shows, each under the path that it names."""
    copy = tmp_path_factory.mktemp("newcomer") / "recallbench"
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "models" / "test_mixers.py", copy / "tests")
    shown = re.findall(r"`([\w/]+\.(?:py|yaml))`[^`]*```\w+\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    new = {name: text for name, text in shown if not (copy / name).exists()}
    assert sorted(new) == [
        "conf/mixer/ema.yaml",
        "conf/task/copy_first.yaml",
        "models/mixers/ema.py",
        "recallbench/tasks/copy_first.py",
    ]
    for name, text in new.items():
        (copy / name).write_text(text)
    return copy


def python(checkout, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )


def test_a_new_mixer_learns_a_new_task(checkout):
    overrides = ["mixer=ema", "task=copy_first", "task.vocab_size=4", "task.length=6", "model.d_model=16"]
    rates = ["train.learning_rate=0.01,0.02", "train.epochs=2"]
    done = python(checkout, "recallbench", "-m", *overrides, *rates)
    assert (done.returncode, done.stderr) == (0, "")
    records = [json.loads(path.read_text()) for path in checkout.glob("runs/*/result.json")]
    assert len(records) == 2
    for record in records:
        assert (record["status"], record["family"]) == ("completed", "ema")
        assert record["config"]["task.name"] == "copy_first"
        assert record["config"]["task.seed"] == 0
        assert [s["sequence_length"] for s in record["slices"]] == [6]
        assert record["metrics"]["accuracy"] > 0.35  # by chance 0.25, give or take 0.02
        assert record["state"]["layers"][1] == {"mixer": "ema", "elements": 16, "bytes": 64}
        assert record["provenance"]["members"] == 2
        assert record["provenance"]["code_version"].startswith("sources ")  # no checkout of git


def test_a_new_mixer_is_held_to_the_contract_of_all(checkout):
    done = python(checkout, "pytest", "-q", "-p", "no:cacheprovider", "tests/test_mixers.py", "-k", "ema")
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) >= 15
