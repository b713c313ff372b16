"""Every notebook runs from its first cell to its last, in a folder of its own."""

import os
import shutil
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

import recallbench

ROOT = Path(recallbench.__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    for beside in ("results", "docs"):
        shutil.copytree(ROOT / beside, tmp_path / beside)
    here = tmp_path / "notebooks"
    here.mkdir()
    shutil.copy(path, here)
    notebook = jupytext.read(here / path.name)
    options = {"timeout": 600, "kernel_name": "python3", "resources": {"metadata": {"path": str(here)}}}
    NotebookClient(notebook, **options).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert not [output["text"] for output in shown if output.get("name") == "stderr"]
