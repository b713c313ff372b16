"""Tokens a second over batch size or prompt length, measured beside the roofline of docs/throughput.md."""

import json

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame, Series

from analysis.figures import NotEnough
from analysis.labels import labels
from analysis.lines import DASHES, ended_lines
from analysis.speed import KINDS
from analysis.style import FAINT_INK

_ASKED = {"batch_size": "throughput.batch_size", "throughput.prompt_length": "throughput.prompt_length"}
"""The setting behind an axis: a batch may have been asked for as the largest."""

_REPEATS = "throughput.passes"
"""Says how often a speed was measured, not of what."""

_PANEL = ["throughput.kind", "throughput.device_name"]


def timed(runs: DataFrame) -> DataFrame:
    """The completed measurements of speed. **Raises** `NotEnough` where there is none."""
    if "throughput.kind" not in runs:
        raise NotEnough("no run is a measurement of speed")
    found = runs.loc[(runs["status"] == "completed") & runs["throughput.kind"].isin(KINDS)]
    if found.empty:
        raise NotEnough("no measurement of speed has completed")
    return found


def speeds_by(runs: DataFrame, axis: str) -> DataFrame:
    """Tokens a second where the axis alone varies, one row a measurement, of lines of two at least.

    `axis` is `batch_size` or `throughput.prompt_length`. **Columns:** `kind`, `device`, `family`, `label`, `line` (a
    number), the axis, `tokens_per_second` and `floor_tokens_per_second`, the most that the device's bandwidth and
    arithmetic allow; `state.bytes`. **Raises** `NotEnough`.
    """
    found = timed(runs)
    asked = _ASKED[axis]
    settings = [str(name) for name in found if str(name).startswith(("model.", "mixer.", "throughput."))]
    settings = [name for name in settings if name not in (asked, _REPEATS)]
    if axis != "batch_size":
        found = found.loc[found["throughput.batch_size"] != "largest"]
    key = found[settings].apply(as_text, axis=1) if len(found) else Series(dtype=str)
    found = found.assign(line=key.groupby(key).ngroup())
    found = found.loc[found.groupby("line")[axis].transform("nunique").gt(1)]
    if found.empty:
        raise NotEnough(f"no architecture was timed at two values of {asked}, all else equal")
    one_each = found.drop_duplicates("line").set_index("line")
    shown = [name for name in settings if name not in _PANEL]
    each = [labels(rows.loc[:, "family"], rows.loc[:, shown]) for _, rows in one_each.groupby(_PANEL)]
    tokens = found["batch_size"].where(
        found["throughput.kind"] == "decode", found["batch_size"] * found["throughput.prompt_length"]
    )
    found = found.assign(
        kind=found["throughput.kind"],
        device=found["throughput.device_name"],
        label=found["line"].map(pd.concat(each)),
        floor_tokens_per_second=tokens / found["floor_seconds"],
    )
    found = found.sort_values(["kind", "device", "family", "line", axis, "tokens_per_second"]).drop_duplicates(
        ["line", axis], keep="last"
    )
    names = ["kind", "device", "family", "label", "line"]
    columns = [*names, axis, "tokens_per_second", "floor_tokens_per_second", "state.bytes"]
    return found[columns].reset_index(drop=True)


def speed_lines(drawn: DataFrame, axis: str, title: str) -> Figure:
    """A panel for decode and one for prefill on each device: measured, and dashed the most that the roofline allows."""
    handles = [
        Line2D([], [], color=FAINT_INK, label="measured"),
        Line2D([], [], color=FAINT_INK, linewidth=0.7, linestyle=DASHES, label="roofline"),
    ]
    where = "" if len(set(drawn["device"])) == 1 else ", " + drawn["device"]
    panels = {str(title): rows for title, rows in drawn.groupby(drawn["kind"] + where)}
    titles = (title, "tokens per second")
    return ended_lines(panels, axis, "tokens_per_second", titles, dashed="floor_tokens_per_second", handles=handles)


def as_text(row: Series) -> str:
    """A row's settings that are there, as one text: equal for equal settings."""
    known = {str(name): value for name, value in row.items() if isinstance(value, list | dict) or not pd.isna(value)}
    return json.dumps(known, sort_keys=True, default=float)
