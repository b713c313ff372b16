"""Speed beside recall: measurements of throughput joined to the architectures that they measured."""

import json
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas import DataFrame

KINDS = ("decode", "prefill")


class Joined(NamedTuple):
    """Points with their speed, and what found no partner."""

    points: DataFrame
    unmatched: DataFrame


def with_speed(points: DataFrame, measurements: DataFrame) -> Joined:
    """Points of `analysis.points` beside the tokens per second of the same architecture.

    `measurements` are runs of `analysis.load`; those that are not of throughput or did not complete are passed over.
    An architecture is the same if all settings `model.*` and `mixer.*` are, but for the vocabulary, which is a
    condition of a measurement as its batch is. All measurements of a kind must share their conditions
    (`throughput.*`): one axis compares one batch size on one device.

    `points` gains the columns `decode_tokens_per_second` and `prefill_tokens_per_second`, NaN where there is no
    measurement. `unmatched` has a row for each point or measurement without a partner: `side` (`points` or
    `measurements`), `kind`, `family`, `label` (of a point), `reason`, which names the nearest of its family on the
    other side.

    **Raises** `ValueError` where there is no measurement, or one kind was measured under several conditions.
    """
    speeds = measurements.loc[measurements["status"] == "completed"]
    speeds = speeds.dropna(subset=["throughput.kind"]) if "throughput.kind" in speeds else speeds.head(0)
    if speeds.empty:
        raise ValueError("the measurements hold no completed run of python -m recallbench.throughput")
    ours = [_settings(row) for row in points.to_dict("records")]
    joined, unmatched = points.copy(), []
    for kind in KINDS:
        of_kind = speeds.loc[speeds["throughput.kind"] == kind]
        _check_conditions(of_kind, kind)
        theirs = [_settings(row) for row in of_kind.to_dict("records")]
        found = {_key(s): v for s, v in zip(theirs, of_kind.get("tokens_per_second", []), strict=True)}
        joined[f"{kind}_tokens_per_second"] = np.array([found.get(_key(s), np.nan) for s in ours], float)
        sides = [
            ("points", points, ours, of_kind, theirs, {_key(s) for s in theirs}),
            ("measurements", of_kind, theirs, points, ours, {_key(s) for s in ours}),
        ]
        for side, table, settings, others, other_settings, keys in sides:
            labels = table["label"] if "label" in table else [""] * len(table)
            for s, family, label in zip(settings, table["family"], labels, strict=True):
                if _key(s) not in keys:
                    near = [o for o, other in zip(other_settings, others["family"], strict=True) if other == family]
                    reason = _reason(s, near)
                    unmatched.append({"side": side, "kind": kind, "family": family, "label": label, "reason": reason})
    return Joined(joined, DataFrame(unmatched, columns=["side", "kind", "family", "label", "reason"]))


def _settings(row: dict[Any, Any]) -> dict[str, Any]:
    """What makes an architecture, without settings that are missing; whole numbers are whole again."""
    settings = {
        str(name): int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in row.items()
        if str(name).startswith(("model.", "mixer.")) and name != "model.vocab_size"
    }
    return {name: value for name, value in settings.items() if isinstance(value, list | dict) or not pd.isna(value)}


def _key(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _check_conditions(speeds: DataFrame, kind: str) -> None:
    conditions = [str(name) for name in speeds if str(name).startswith("throughput.")]
    for name in conditions:
        values = [f"{v:g}" if isinstance(v, float) else str(v) for v in speeds[name].unique()]
        if len(values) > 1:
            raise ValueError(f"{kind} was measured at several {name} ({', '.join(values)}): keep the runs of one")


def _reason(settings: dict[str, Any], others: list[dict[str, Any]]) -> str:
    """How the nearest of the others differs."""
    if not others:
        return "none of this family on the other side"
    differing = min(
        ([name for name in {**settings, **other} if settings.get(name) != other.get(name)] for other in others), key=len
    )
    return f"the nearest differs in {', '.join(sorted(differing))}"
