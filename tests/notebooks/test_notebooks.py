"""Every notebook runs from its first cell to its last, in a folder of its own."""

import os
import shutil
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

import recallbench

ROOT = Path(recallbench.__file__).parents[1]
SHORTER = {
    "1_getting_started": ('"num_examples": 4096', '"num_examples": 512'),
    "3_your_own_architecture": ("task.num_examples=4096", "task.num_examples=512"),
    "4_real_recall": ("train.tokens=200000", "train.tokens=20000"),
    "5_slurm_sweep": ("num_examples: 4096", "num_examples: 512"),
}
"""How much the notebooks train on, and what will do here, as nothing that they do depends on what is learned."""


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    for beside in ("results", "docs"):
        shutil.copytree(ROOT / beside, tmp_path / beside)
    here = tmp_path / "notebooks"
    here.mkdir()
    text, (long, short) = path.read_text(encoding="utf-8"), SHORTER.get(path.stem, ("", ""))
    assert long in text
    notebook = jupytext.reads(text.replace(long, short), fmt="py")
    options = {"timeout": 600, "kernel_name": "python3", "resources": {"metadata": {"path": str(here)}}}
    NotebookClient(notebook, **options).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert not [output["text"] for output in shown if output.get("name") == "stderr"]
