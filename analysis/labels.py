"""Short labels for architecture points: the settings in which those of one family differ."""

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

    `settings` has a column a setting, with dotted names; a setting within a list of dicts, such as
    a layer's, counts by its own name. A row alone in its family has the empty label.
    """
    named = Series("", index=settings.index, name="label")
    for _, rows in settings.groupby(family):
        described = [dict(_scalars(row)) for row in rows.to_dict("records")]
        names = dict.fromkeys(name for row in described for name in row)
        varied = [name for name in names if len({row.get(name) for row in described}) > 1]
        named[rows.index] = [_label({name: row[name] for name in varied if name in row}) for row in described]
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


def _label(settings: dict[str, Any]) -> str:
    def rank(name: str) -> int:
        if isinstance(settings[name], str):
            return -1
        return [*_SYMBOLS, _last(name)].index(_last(name))

    # The same setting may stand in the mixer's group and in a layer's: it is said once.
    return " ".join(dict.fromkeys(_part(name, settings[name]) for name in sorted(settings, key=rank)))


def _part(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    number = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f"{_SYMBOLS.get(_last(name), _last(name))}={number}"


def _last(name: str) -> str:
    return name.rpartition(".")[2]
