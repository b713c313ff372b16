"""The reference of all modules can be made from their docstrings, and has them all."""

import warnings
from pathlib import Path

import pdoc

import recallbench

ROOT = Path(recallbench.__file__).parents[1]
ROOMS = ("kernels", "models", "recallbench", "sweeps", "analysis")


def test_every_module_has_a_page_with_its_docstring(tmp_path):
    files = [file for room in ROOMS for file in (ROOT / room).rglob("*.py") if file.name != "__main__.py"]
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The module specification")  # of a package and then of what is in it
        pdoc.pdoc(*modules, output_directory=tmp_path)
    for module in modules:
        page = (tmp_path / f"{module.replace('.', '/')}.html").read_text()
        assert 'class="docstring"' in page, module
