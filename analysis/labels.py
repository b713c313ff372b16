"""Short labels for architecture points: settings that tell those of one family apart."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pandas as pd
from pandas import DataFrame, Series

_SYMBOLS = {"d_model": "D", "num_heads": "H", "feature_dim": "K", "window_size": "W"}
"""The field's symbols for settings, in the order in which a label names them."""


def labels(family: Series, settings: DataFrame) -> Series:
    """A label for each row, as in "taylor K=16": words first, then symbols, then other settings.

    A setting is named where it tells apart rows that those named before it do not, and those that only some rows have
    come last. `settings` has a column a setting, with dotted names; a setting within a list of dicts, such as
    a layer's, counts by its own name. A row alone in its family has the empty label.
    """
    named = Series("", index=settings.index, name="label")
    for _, rows in settings.groupby(family):
        described = [dict(_scalars(row)) for row in rows.to_dict("records")]
        telling = _telling(described)
        named[rows.index] = [_label({name: row[name] for name in telling if name in row}) for row in described]
    return named


def typeset(label: str) -> str:
    """The label in matplotlib's mathtext, its symbols in italics."""
    return re.sub(rf"\b([{''.join(_SYMBOLS.values())}])=", r"$\1{=}$", label)


def _scalars(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _scalars(item, f"{name}.{key}")
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _scalars(item, f"{name}.{index}")
    elif isinstance(value, list):
        yield name, json.dumps(value)
    elif not pd.isna(value):
        yield name, value


def _telling(described: list[dict[str, Any]]) -> list[str]:
    values = {name: row[name] for row in described for name in row}

    def rank(name: str) -> tuple[bool, int]:
        of_all = all(name in row for row in described)
        return not of_all, -1 if isinstance(values[name], str) else [*_SYMBOLS, _last(name)].index(_last(name))

    telling: list[str] = []
    apart = 1
    for name in sorted(values, key=rank):
        then = len({tuple(row.get(each) for each in (*telling, name)) for row in described})
        if then > apart:
            telling, apart = [*telling, name], then
    return telling


def _label(settings: dict[str, Any]) -> str:
    # The same setting may stand in the mixer's group and in a layer's: it is said once.
    return " ".join(dict.fromkeys(_part(name, value) for name, value in settings.items()))


def _part(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    number = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f"{_SYMBOLS.get(_last(name), _last(name))}={number}"


def _last(name: str) -> str:
    return name.rpartition(".")[2]
