"""The command line of analysis, as a user calls it."""

import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pandas as pd
from packaging.requirements import Requirement

import analysis

ROOT = Path(analysis.__file__).parents[1]


def call(*arguments, without=()):
    """The command line, where no module named in `without` can be imported."""
    program = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({[*without]})); "
        "runpy.run_module('analysis', run_name='__main__', alter_sys=True)"
    )
    how = ["-c", program] if without else ["-m", "analysis"]
    return subprocess.run(
        [sys.executable, *how, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "60"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_figures_of_a_study(study, record, write, tmp_path):
    members = study()
    root = write([*members, record(study="other", family="other")], quick=members)
    out = tmp_path / "figures"
    done = call("figures", root, "--study", "quick", "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    names = [line.split(":")[0] for line in done.stdout.splitlines() if ": left out, " not in line]
    assert names == ["accuracy_by_kv_pairs", "feature_maps", "recall_by_state", "training_cost"]
    suffixes = (".csv", ".md", ".pdf", ".png")
    assert sorted(p.name for p in out.iterdir()) == [n + s for n in names for s in suffixes]
    table = pd.read_csv(out / "recall_by_state.csv")
    assert len(table) == 18
    rows = (out / "recall_by_state.md").read_text().splitlines()
    assert len(rows) == 18 + 2
    assert rows[0].startswith("| family | label |")


def test_a_figure_that_the_runs_do_not_support_is_left_out(record, write, tmp_path):
    root = write([record(slices={})])
    done = call("figures", root, "--out", tmp_path / "figures")
    assert done.returncode == 0
    left_out = "accuracy_by_kv_pairs: left out, no completed run has slices by num_kv_pairs"
    assert left_out in done.stdout.splitlines()
    assert (tmp_path / "figures" / "recall_by_state.pdf").exists()


def test_a_report_of_a_study(record, write, tmp_path):
    root = write([record(), record(study="other")])
    done = call("report", root, "--study", "other", "--out", tmp_path / "new" / "report.html")
    assert (done.returncode, done.stderr) == (0, "")
    assert "<h1>other</h1>" in (tmp_path / "new" / "report.html").read_text()
    write([record("mamba", status="failed", study="untrained")])
    done = call("report", root, "--study", "untrained", "--out", tmp_path / "report.html")
    assert (done.returncode, done.stderr) == (2, "no run is completed\n")


def test_no_records_and_broken_records_are_one_sentence(record, write, tmp_path):
    done = call("figures", tmp_path / "nowhere", "--out", tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"no run records in {tmp_path / 'nowhere'}"]
    broken = write([record()]) / "broken" / "result.json"
    broken.parent.mkdir()
    broken.write_text("{")
    done = call("figures", tmp_path / "runs", "--out", tmp_path)
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert str(broken) in sentence


def test_analysis_needs_no_torch():
    rooms = "{'torch', 'kernels', 'models', 'recallbench', 'sweeps'}"
    program = f"import sys, analysis.__main__ as a; a.discover(); print({rooms} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_what_the_makefile_installs_for_published_studies_draws_them(tmp_path):
    rule = re.search(r"^\.venv/analysis:(.*?)^$", (ROOT / "Makefile").read_text(), re.DOTALL | re.MULTILINE)[1]
    named = re.search(r"--constraint \S+ \\\n(.*)", rule)[1].split()
    installed = closure(named)
    modules = packages_distributions()
    foreign = {module for module, of in modules.items() if not installed & set(map(canonical, of))}
    assert {"torch", "hydra", "pydantic", "scipy"} <= foreign
    published = ROOT / "results" / "based_figure2.parquet"
    for asked in (["figures", "--out", tmp_path], ["report", "--out", tmp_path / "report.html"]):
        done = call(asked[0], published, *asked[1:], without=foreign - {"analysis"})
        assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "recall_by_state.pdf").exists()


def closure(names):
    """Distributions and all that they need."""
    found, waiting = set(), [*names]
    while waiting:
        name = canonical(waiting.pop())
        if name in found:
            continue
        found.add(name)
        needed = map(Requirement, requires(name) or [])
        waiting += [each.name for each in needed if not each.marker or each.marker.evaluate({"extra": ""})]
    return found


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()
