"""Every command that the README and the guides show is one that works.

Commands of ours run in this process, all but the training or measuring itself, for which records are written at once:
what is composed, checked, grouped, launched, listed and drawn goes its usual way. The work has tests of its own.
"""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import recallbench
import recallbench.__main__
import sweeps.__main__
from recallbench.checkpoint import WritableDirectory
from recallbench.config import ExecutionConfig
from recallbench.runs import execution_of, runs_of

ROOT = Path(recallbench.__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
METRICS = {"accuracy": 0.5, "loss": 1.0, "validation_accuracy": 0.5, "validation_loss": 1.0, "tokens_per_second": 9.0}
MEASURED = {
    "metrics": METRICS,
    "slices": [{"sequence_length": 64, "num_kv_pairs": 4, **METRICS}],
    "state": {"length": 64, "dtype": "float32", "elements": 4, "bytes": 16, "layers": []},
    "cost": {"seconds": 1.0},
    "provenance": {},
}


def commands(page: Path) -> list[list[str]]:
    """The commands of a page's blocks of shell, each as its words."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def record(runs, execution: ExecutionConfig) -> None:
    """Give runs that have none a record, as if they had been carried out."""
    for run in runs:
        directory = WritableDirectory(execution.runs, run)
        if not directory.has_record():
            directory.path.mkdir(parents=True, exist_ok=True)
            directory.write_record(execution.study, "completed", None, MEASURED)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A command, in a folder of its own with the published results in it."""
    monkeypatch.chdir(tmp_path)
    for beside in ("results", "docs"):
        shutil.copytree(ROOT / beside, tmp_path / beside)
    (tmp_path / "gpt2").mkdir()  # in the place of the hub's
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 1, "n_embd": 12}))
    # as on the machine that a command is meant for
    monkeypatch.setattr("recallbench.throughput.measurement.Measurement.check_device", lambda run, device: None)
    monkeypatch.setattr("recallbench.perform.perform", lambda runs, execution, stop: record(runs, execution))
    monkeypatch.setattr(
        "sweeps.local.run_pool",
        lambda jobs, at, stop, say: [record(runs_of(job), execution_of(job)) for job in jobs],
    )
    monkeypatch.setattr(
        "sweeps.slurm.launch_on_slurm",
        lambda jobs, config, execution, console: [record(job.runs, execution) for job in jobs],
    )

    def called(*words: str) -> int:
        words = [word.removeprefix(".venv/bin/") for word in words]
        match words:
            case ["make", *asked]:
                return subprocess.run(
                    ["make", "-n", *asked], cwd=ROOT, stdout=subprocess.DEVNULL, check=False
                ).returncode
            case ["pip", "install", "-e", what]:
                extras = re.fullmatch(r"\.\[([\w,]+)\]", what)[1].split(",")
                project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
                return len(set(extras) - project["optional-dependencies"].keys())
            case ["python", "-m", "pytest", path, *_]:
                return int(not (ROOT / path).exists())
            case ["python", "-m", module, *arguments] if (ROOT / module.replace(".", "/")).parent.exists():
                monkeypatch.setattr(sys, "argv", [module, *arguments])
                return in_process(module)
        return 127

    return called


def in_process(module: str) -> int:
    try:
        match module:
            case "recallbench":
                recallbench.__main__.main()
            case "recallbench.throughput":
                recallbench.__main__.main("throughput")
            case "sweeps":
                return sweeps.__main__.main()
            case _:
                runpy.run_module(module, run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_the_commands_of_a_page_work(page, run, capfd):
    for words in commands(page):
        assert run(*words) == 0, f"{shlex.join(words)}\n{''.join(capfd.readouterr())}"
