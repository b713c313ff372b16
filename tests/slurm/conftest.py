"""A real SLURM on this machine, and a study small enough for it."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import recallbench

ROOT = Path(recallbench.__file__).parents[1]
ONE_NODE = Path(__file__).with_name("one_node.sh")

STUDY = """
# @package _global_
study: small
task: {vocab_size: 32, sequence_length: 32, num_kv_pairs: 4, num_examples: 1024, num_test_examples: 32}
model: {d_model: 8}
train: {batch_size: 8, stop_at_accuracy: null}
device: cpu
checkpoint_seconds: 0.5
hydra:
  mode: MULTIRUN
  sweeper: {params: {mixer: attention}}
"""
"""Epochs of 128 steps, a fraction of a second each. Points that differ in task.seed do not train together."""


def missing() -> str | None:
    """Why there can be no SLURM here."""
    absent = [name for name in ("slurmctld", "slurmd", "munged") if not shutil.which(name)]
    if absent:
        return f"{', '.join(absent)} not installed; `make slurm-up` does that on Debian, as root"
    return None if os.geteuid() == 0 else "SLURM on one node must be started as root"


@pytest.fixture(scope="session")
def slurm() -> Iterator[Path]:
    """SLURM on one node, that which is up or else one for these tests alone; the folder of its files."""
    if why := missing():
        assert "RECALLBENCH_CI" not in os.environ, f"CI must run the tests on SLURM: {why}"
        pytest.skip(why)
    with (Path(tempfile.gettempdir()) / "recallbench-slurm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of another pytest on this machine
        was_up = subprocess.run([ONE_NODE, "status"], capture_output=True, check=False).returncode == 0
        said = subprocess.run([ONE_NODE, "up"], stdout=subprocess.PIPE, text=True, check=True).stdout
        os.environ["SLURM_CONF"] = said.partition("=")[2].strip()
        yield Path(os.environ["SLURM_CONF"]).parent
        if not was_up:
            subprocess.run([ONE_NODE, "down"], check=True)


class Study:
    """The study `small` in a folder of its own, what is launched of it and what can be asked."""

    def __init__(self, folder: Path):
        self.configurations, self.runs = folder / "conf", folder / "runs"
        (folder / "conf" / "study").mkdir(parents=True)
        (folder / "conf" / "study" / "small.yaml").write_text(STUDY)

    def start(self, *overrides: str, launcher: str = "slurm", **options: Any) -> subprocess.Popen[str]:
        """`python -m recallbench +study=small`."""
        where = ["--config-dir", str(self.configurations), "+study=small", f"hydra/launcher={launcher}"]
        return subprocess.Popen(
            [sys.executable, "-m", "recallbench", *where, f"runs={self.runs}", *overrides],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
            **options,
        )

    def launch(self, *overrides: str, launcher: str = "slurm") -> str:
        """The same, to its end; what it said."""
        process = self.start(*overrides, launcher=launcher)
        said, _ = process.communicate()
        assert process.returncode == 0, said
        return said

    def sweeps(self, command: str, *arguments: str) -> str:
        """`python -m sweeps COMMAND small`; what it said."""
        asked = [sys.executable, "-m", "sweeps", command, "small", "--runs", str(self.runs), *arguments]
        return subprocess.run(asked, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout

    def states(self) -> dict[str, int]:
        """The table of `status`: state -> number of runs."""
        rows = [line.split("│") for line in self.sweeps("status").splitlines() if line.startswith("│")]
        return {row[1].strip(): int(row[2]) for row in rows}

    def tasks(self) -> dict[int, tuple[str, Path]]:
        """By its task.seed, the latest SLURM task of a run and the run's folder; of tasks of one run each."""
        found = {}
        for launch in sorted(self.runs.glob("launches/small/*/tasks.jsonl")):
            (script,) = launch.parent.glob("*_submission.sh")
            identities, *jobs = map(json.loads, launch.read_text().splitlines())
            for i, ((identity,), (job,)) in enumerate(zip(identities, jobs, strict=True)):
                found[job["task"]["seed"]] = (f"{script.name.partition('_')[0]}_{i}", self.runs / identity)
        return found

    def results(self) -> dict[str, Any]:
        """What each record and log say of the result."""
        found = {}
        for path in self.runs.glob("*/result.json"):
            record = json.loads(path.read_text())
            log = [json.loads(line) for line in path.with_name("log.jsonl").read_text().splitlines()]
            told = [{key: value for key, value in entry.items() if key != "seconds"} for entry in log]
            completed = int(record["status"] == "completed")
            parts = {part: record[part] for part in ("metrics", "slices", "state")}
            found[path.parent.name] = {"completed": completed, **parts, "log": told}
        return found

    def is_clean(self) -> bool:
        """Whether nothing is left of the work: no claim, no checkpoint, no half-written file, no record replaced."""
        leftovers = [*self.runs.glob("*/claim*"), *self.runs.glob("*/checkpoint*"), *self.runs.rglob("*.partial")]
        return not [*leftovers, *self.runs.glob("*/earlier")]


@pytest.fixture
def study(slurm: Path, tmp_path: Path) -> Study:
    return Study(tmp_path)


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Wait for something to become true; after so many seconds it never will."""

    def wait(holds: Callable[[], object], what: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"waited in vain for {what}"
            time.sleep(0.1)

    return wait


@pytest.fixture(scope="session")
def ask() -> Callable[..., str]:
    """What a command prints."""
    return lambda *command: subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.fixture(scope="session")
def new_study(slurm: Path) -> Callable[[Path], Study]:
    """The study in a folder of its own."""
    return Study


@pytest.fixture(scope="session")
def numbers() -> Callable[..., dict[str, float]]:
    """Every number of nested dictionaries and lists by its dotted name, so that `pytest.approx` compares them all."""

    def flat(tree: Any, prefix: str = "") -> dict[str, float]:
        entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
        if entries is None:
            return {prefix: tree} if isinstance(tree, int | float) else {}
        return {k: v for key, value in entries for k, v in flat(value, f"{prefix}.{key}").items()}

    return flat
