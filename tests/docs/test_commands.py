"""Every command that the README and the guides show is one that works.

Commands of ours run in this process, all but the training or measuring itself, for which records are written at once:
what is composed, checked, grouped, launched, listed and drawn goes its usual way. The work has tests of its own.
"""

import importlib.util
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

ROOT = Path(recallbench.__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OURS = ("recallbench", "sweeps", "analysis")


@pytest.fixture(autouse=True)
def loggers_as_they_were(monkeypatch):
    """Hydra, as configured, silences every logger for the rest of the process, which other tests share."""
    monkeypatch.setattr("hydra._internal.logging_config.configure_logging", lambda config: None)


def commands(page: Path) -> list[list[str]]:
    """The commands of a page's blocks of shell, each as its words."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def python_of(page: Path) -> list[str]:
    """The page's blocks of Python."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def run(monkeypatch, words: list[str]) -> int:
    """The status of a command."""
    replaced = {"roneneldan/TinyStories": "stories/TinyStories", "=...": "=notes.jsonl"}
    for name, ours in replaced.items():
        words = [word.removeprefix(".venv/bin/").replace(name, ours) for word in words]
    match words:
        case ["make", *asked]:
            return subprocess.run(["make", "-n", *asked], cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode
        case ["pip", "install", "-e", what]:
            extras = re.fullmatch(r"\.\[([\w,]+)\]", what)[1].split(",")
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            return len(set(extras) - project["optional-dependencies"].keys())
        case ["torchrun" | "srun", *others] if "-m" in others:  # each process runs what stands behind it
            return run(monkeypatch, ["python", *others[others.index("-m") :]])
        case ["python", "-m", "pytest", path, *_]:
            return int(not (ROOT / path).exists())
        case ["python", "-m", module, *arguments] if module.partition(".")[0] in OURS:
            if "--out" in arguments and (out := Path(arguments[arguments.index("--out") + 1])).parent == Path():
                out.unlink(missing_ok=True)  # two examples may name the same file, and none writes over one
            monkeypatch.setattr(sys, "argv", [module, *arguments])
            return in_process(module)
        case ["python", "-m", module, *_]:
            return int(importlib.util.find_spec(module) is None)
    return 127


def in_process(module: str) -> int:
    try:
        match module:
            case "recallbench":
                recallbench.__main__.main()
            case "recallbench.throughput":
                recallbench.__main__.main("throughput")
            case "sweeps":
                return sweeps.__main__.main()
            case "analysis":
                return importlib.import_module("analysis.__main__").main()
            case _:
                runpy.run_module(module, run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where the runs of the study `quick` are kept, once it was done."""
    return tmp_path_factory.mktemp("quick") / "runs"


@pytest.fixture
def quick(at_hand, kept, monkeypatch):
    """The study that some pages look back at, done for the first of them."""
    if kept.exists():
        shutil.copytree(kept, "runs", dirs_exist_ok=True)
    else:
        assert run(monkeypatch, ["python", "-m", "recallbench", "+study=quick"]) == 0
        shutil.copytree("runs", kept)


@pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")  # of runpy
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
@pytest.mark.usefixtures("quick")
def test_the_commands_of_a_page_work(page, monkeypatch, capfd):
    for words in commands(page):
        assert run(monkeypatch, words) == 0, f"{shlex.join(words)}\n{''.join(capfd.readouterr())}"


@pytest.mark.parametrize("page", [page for page in PAGES if python_of(page)], ids=lambda page: page.stem)
@pytest.mark.usefixtures("quick")
def test_the_python_of_a_page_works(page, monkeypatch):
    assert run(monkeypatch, ["python", "-m", "recallbench.throughput", "+study=quick_throughput"]) == 0
    names = {"__name__": page.stem}
    for block in python_of(page):
        exec(compile(block, page.name, "exec"), names)
