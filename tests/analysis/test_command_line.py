"""The command line of analysis, as a user calls it."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

import analysis

ROOT = Path(analysis.__file__).parents[1]


def call(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "analysis", *map(str, arguments)],
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
