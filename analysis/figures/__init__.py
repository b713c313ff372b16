"""The figures of a study, one module each.

A module here is a figure: its name is the figure's, its docstring says what the figure shows, and
it defines

    def table(runs: DataFrame) -> DataFrame   # the numbers that are drawn
    def draw(runs: DataFrame) -> Figure       # in `analysis.style.print_style`

over the runs of `analysis.load`. Where the runs do not support it, either raises `NotEnough`.
"""

import importlib
import pkgutil
from typing import Protocol, cast

from matplotlib.figure import Figure
from pandas import DataFrame


class NotEnough(ValueError):
    """The runs do not support a figure: why, in one sentence."""


class FigureModule(Protocol):
    """What a module in this folder defines."""

    def table(self, runs: DataFrame) -> DataFrame: ...

    def draw(self, runs: DataFrame) -> Figure: ...


def discover() -> dict[str, FigureModule]:
    """Every figure in this folder by name, in alphabetical order."""
    return {
        name: cast("FigureModule", importlib.import_module(f"{__name__}.{name}"))
        for name in sorted(module.name for module in pkgutil.iter_modules(__path__))
    }
