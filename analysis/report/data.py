"""What the page of a report draws from: the run of each seed behind each point, in columns."""

import json
import math
from typing import Any

import pandas as pd
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path
from pandas import DataFrame, Series
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from analysis.architectures import at_best_learning_rate
from analysis.figures import NotEnough
from analysis.labels import labels
from analysis.style import Marker, look

_TITLES = {
    "state.bytes": "state per sequence",
    "state.elements": "state per sequence (elements)",
    "accuracy": "accuracy",
    "cost.seconds": "training time (s)",
    "cost.parameters": "parameters",
    "cost.peak_memory_bytes": "peak memory",
}

_LESS_IS_BETTER = ("loss", "perplexity", "bits", "bytes", "seconds", "joules")
"""Words in the names of metrics of which less is better."""

_SYMBOLS: dict[Marker, str] = {
    "*": "star",
    "s": "square",
    "^": "triangle-up",
    "v": "triangle-down",
    "<": "triangle-left",
    ">": "triangle-right",
    "o": "circle",
    "D": "diamond",
    "d": "diamond-tall",
    "P": "cross",
    "X": "x",
    "p": "pentagon",
    "h": "hexagon2",
    "8": "octagon",
    (4, 1, 0): "star-diamond",
    (4, 1, 45): "star-square",
    (3, 1, 0): "star-triangle-up",
    (5, 1, 180): "star-triangle-down",
    (6, 1, 0): "hexagram",
    (8, 1, 0): "asterisk",
}
"""plotly's names for the markers of `analysis.style`."""


def page_data(runs: DataFrame, curves: DataFrame) -> dict[str, Any]:
    """All that the page's script reads, as JSON can say it: numbers, texts and null.

    `runs`, `settings.varied` and each slice are columns over R runs: those of
    `at_best_learning_rate`, of which the script takes together the seeds of one `point`.

    **Raises** `NotEnough` where no run is completed.
    """
    if "completed" not in set(runs["status"]):
        raise NotEnough("no run is completed")
    best = at_best_learning_rate(runs).reset_index(drop=True)
    if best.empty:
        raise NotEnough("no completed run was trained")
    settings = _settings(best)
    varied = [str(name) for name in settings if len(set(settings[name])) > 1 and name != "seed"]
    varied.sort(key=lambda name: settings[name].map(_is_nested).any())  # long ones last
    axes = [name for name in best if _is_axis(str(name), best.loc[:, name], varied)]
    names = ["identity", "family", "label", "point", *best.columns.intersection(["seed"])]
    return {
        "looks": {family: _look(family) for family in sorted(best["family"].unique())},
        "axes": [_axis(str(name)) for name in axes],
        "runs": {**{name: _values(best.loc[:, name]) for name in [*names, *axes]}, "task": _values(_tasks(best))},
        "settings": {
            "varied": {name: _values(settings.loc[:, name]) for name in varied},
            "same": {str(name): settings[name].iloc[0] for name in settings.columns.difference(varied)},
        },
        "slices": _slices(best),
        "curves": _curves(curves, best["identity"].tolist()),
    }


def _settings(best: DataFrame) -> DataFrame:
    """Settings as texts, None where a run has none; those that no run has are left out."""
    measured = ("state.", "cost.", "provenance.", "throughput.")
    names = [name for name in best if "." in str(name) and not str(name).startswith(measured)]
    known = best.loc[:, [*names, *best.columns.intersection(["seed"])]].dropna(axis="columns", how="all")
    return DataFrame({name: Series([_text(value) for value in known[name]], dtype=object) for name in known})


def _text(value: Any) -> str | None:
    if isinstance(value, list | dict):
        return json.dumps(value)
    if value is None or pd.isna(value):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _is_nested(text: str | None) -> bool:
    return text is not None and text.startswith(("[", "{"))


def _is_axis(name: str, column: Series, varied: list[str]) -> bool:
    if name in ("seed", "point") or not is_numeric_dtype(column) or is_bool_dtype(column) or column.isna().all():
        return False
    return name in varied or name in ("state.bytes", "state.elements") or "." not in name or name.startswith("cost.")


def _axis(name: str) -> dict[str, Any]:
    is_metric = "." not in name
    more = is_metric and not any(word in name for word in _LESS_IS_BETTER)
    return {"name": name, "title": _TITLES.get(name, name), "more": more, "bytes": name.endswith("bytes")}


def _tasks(best: DataFrame) -> Series:
    """What a run was asked: its task by name and by the settings in which the study's tasks differ."""
    if "task.name" not in best:
        return Series("", index=best.index)
    name = best.loc[:, "task.name"].fillna("")
    settings = best.loc[:, [str(name).startswith("task.") and name != "task.name" for name in best]]
    return (name + " " + labels(name, settings)).str.strip()


def _look(family: str) -> dict[str, str]:
    style = look(family)
    return {
        "name": style.name,
        "color": style.color,
        "symbol": _SYMBOLS[style.marker],
        "path": _svg_path(MarkerStyle(style.marker)),
    }


def _svg_path(marker: MarkerStyle) -> str:
    """The outline of a marker as an SVG path in a box from -1 to 1, y downwards."""
    outline = marker.get_path().transformed(marker.get_transform())
    scale = 1 / max(abs(outline.get_extents().get_points()).max(), 1e-9)
    letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
    parts = []
    for corners, code in outline.iter_segments():
        said = " ".join(f"{scale * x:.3g},{-scale * y:.3g}" for x, y in corners.reshape(-1, 2))
        parts.append("Z" if code == Path.CLOSEPOLY else letters[code] + said)
    return "".join(parts)


def _slices(best: DataFrame) -> list[dict[str, Any]]:
    """One entry a slice of the test set: its name, and its metrics over the R runs."""
    if "slices" not in best:
        return []
    metrics = {name for name in best if "." not in str(name)} | {"examples"}
    found: dict[str, dict[str, list[Any]]] = {}
    for row, slices in enumerate(best["slices"]):
        for entry in slices or []:
            name = ", ".join(f"{key} {_text(value)}" for key, value in entry.items() if key not in metrics)
            columns = found.setdefault(name, {})
            for key in metrics & entry.keys() - {"examples"}:
                columns.setdefault(key, [None] * len(best))[row] = _number(entry[key])
    return [{"name": name, "columns": columns} for name, columns in found.items()]


def _curves(curves: DataFrame, identities: list[str]) -> dict[str, dict[str, list[Any]]]:
    """By run, the numbers that it logged, in columns."""
    if curves.empty:
        return {}
    wanted = curves.loc[curves["identity"].isin(identities)]
    numbers = wanted.select_dtypes("number").columns.difference(["epochs"], sort=False)
    return {
        str(identity): {name: _values(log[name]) for name in numbers if log[name].notna().any()}
        for identity, log in wanted.groupby("identity")
    }


def _values(column: Series) -> list[Any]:
    return [_number(value) for value in column.tolist()]


def _number(value: Any) -> Any:
    """A value as JSON can say it, floats to six digits."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else float(f"{value:.6g}")
