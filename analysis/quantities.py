"""What columns measure: which way is better, on which scale, and how several of them span a space."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from pandas import DataFrame

from analysis.geometry import Floats

Better = Literal["less", "more"]
Names = str | Sequence[str]


class Quantity(NamedTuple):
    """Which way a quantity is better, and whether its ratios count (a log2 axis) or its differences."""

    better: Better
    log: bool


_BY_ENDING = {
    "tokens_per_second": Quantity("more", log=True),
    "accuracy": Quantity("more", log=False),
    "bytes": Quantity("less", log=True),
    "bits": Quantity("less", log=True),
    "elements": Quantity("less", log=True),
    "parameters": Quantity("less", log=True),
    "seconds": Quantity("less", log=True),
    "perplexity": Quantity("less", log=True),
    "loss": Quantity("less", log=False),
}
"""By the last words of a column's name: `cost.peak_memory_bytes` is bytes, `validation_accuracy` an accuracy."""


class Space(NamedTuple):
    """Two or three columns, costs before qualities."""

    columns: list[str]
    better: list[Better]

    @property
    def signs(self) -> Floats:
        """1 where less is better, -1 where more is: [axes]."""
        return np.array([1.0 if better == "less" else -1.0 for better in self.better])

    def oriented(self, table: DataFrame) -> Floats:
        """The points [n, axes], each axis turned so that less is better."""
        return table.loc[:, self.columns].to_numpy(float, na_value=np.nan) * self.signs


def space(table: DataFrame, cost: Names, quality: Names, better: Mapping[str, Better] | None = None) -> Space:
    """The columns that costs and qualities name in a table.

    A column's direction is that of `better`, else that of its kind (bytes, bits, elements, parameters, seconds,
    perplexity and loss are better with less; tokens per second and accuracy with more), else that of its part: less
    of a cost, more of a quality.

    **Raises** `ValueError` for a column that the table lacks or that holds no numbers, and unless they are two or
    three.
    """
    parts = [_names(cost), _names(quality)]
    columns = [name for names in parts for name in names]
    if len(columns) not in (2, 3) or len(set(columns)) < len(columns):
        raise ValueError(f"a frontier is over two or three different columns, not {', '.join(columns) or 'none'}")
    for name in columns:
        check_numbers(table, name)
    less: list[Better] = ["less"]
    more: list[Better] = ["more"]
    defaults = less * len(parts[0]) + more * len(parts[1])
    chosen = better or {}
    if wrong := {name: way for name, way in chosen.items() if way not in ("less", "more")}:
        raise ValueError(f"better is {wrong}, but it must be 'less' or 'more' for each column")
    return Space(columns, [chosen.get(n) or direction(n, d) for n, d in zip(columns, defaults, strict=True)])


def direction(column: str, otherwise: Better) -> Better:
    """Which way a column is better by its kind, or `otherwise`."""
    kind = _kind(column)
    return kind.better if kind else otherwise


def is_log(column: str) -> bool:
    """Whether the axis of a column is logarithmic."""
    kind = _kind(column)
    return bool(kind and kind.log)


def check_numbers(table: DataFrame, column: str) -> None:
    """**Raises** `ValueError`, with the columns there are, for one that is missing or holds no numbers."""
    if column in table and pd.api.types.is_numeric_dtype(table[column]):
        return
    there = [str(name) for name in table if pd.api.types.is_numeric_dtype(table[name])]
    wrong = "holds no numbers" if column in table else "is not there"
    raise ValueError(f"the column {column!r} {wrong}; columns of numbers are {', '.join(there) or 'none'}")


def _kind(column: str) -> Quantity | None:
    return next((kind for ending, kind in _BY_ENDING.items() if column.endswith(ending)), None)


def _names(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else list(names)
