"""Runs of Weights and Biases in the columns of `analysis.load`, so that old logs can draw frontiers."""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pandas import DataFrame

from analysis.records import NoRecordsError
from analysis.wandb_runs import WandbError, WandbRun, offline_runs, project_runs

_log = logging.getLogger(__name__)

_KEYS = {
    "family": ("model.family", "mixer.name", "family", "model.name", "model.sequence_mixer.name", "architecture"),
    "train.learning_rate": ("train.learning_rate", "learning_rate", "lr", "optimizer.lr", "train.lr"),
    "seed": ("seed", "train.seed"),
    "accuracy": ("metrics.accuracy", "accuracy", "test/accuracy", "valid/accuracy", "val/accuracy", "eval/accuracy"),
    "loss": ("metrics.loss", "loss", "test/loss", "valid/loss", "val/loss", "eval/loss"),
    "validation_accuracy": ("metrics.validation_accuracy", "validation_accuracy", "valid/accuracy", "val/accuracy"),
    "validation_loss": ("metrics.validation_loss", "validation_loss", "valid/loss", "val/loss"),
    "state.bytes": ("state.bytes", "state_bytes"),
    "state.elements": ("state.elements", "state_size"),
    "state.length": ("state.length",),
    "state.dtype": ("state.dtype",),
    "cost.seconds": ("cost.seconds", "_runtime"),
    "cost.steps": ("cost.steps", "_step"),
    "cost.parameters": ("cost.parameters", "num_parameters"),
}
"""Our columns, and the keys that are looked for, in this order: recallbench's own, zoology's, other habits."""

_TEXTS = {"family", "state.dtype", "task.name"}

_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}

_OF_LAUNCHING = ("run_id", "sweep_id", "launch_id", "logger", "wandb", "_wandb")
"""Groups and keys of a configuration that tell runs apart without changing what they do."""

_STATUS = {"finished": "completed", "failed": "failed", "crashed": "failed", "killed": "failed"}
"""By wandb's state; one that is not here is of a run that has not ended."""

_SLICE = re.compile(r"(?:valid|val|test|eval)/(\w+)/accuracy-(.+)")


def from_wandb(
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    keys: Mapping[str, str] | None = None,
    study: str | None = None,
) -> DataFrame:
    """Import runs of wandb, one row a run, in the columns of `analysis.load`.

    `source` is a project online (`ENTITY/PROJECT`), a folder or `.wandb` file of wandb's offline mode, or several of
    these. What exists on disk is read from disk. Runs that have not ended are left out.

    `keys` says where a column comes from, {our column: their key}, in place of the keys that are looked for:
    `{"accuracy": "valid/accuracy", "state.elements": "state_size"}`. Their keys are those of the configuration, nested
    ones dotted (`model.sequence_mixer.name`), and of the summary as logged (`valid/accuracy`).

    Settings keep their dotted names; one without a dot becomes `config.NAME`, because a name without a dot is a
    metric's. Numbers of the summary are metrics. `valid/KEY/accuracy-VALUE` is a slice. A state of which only the
    elements are known is taken as float32, and says so in `state.dtype`. What a run lacks is missing in its row.

    **Raises** `NoWandbError`; `BrokenRecordError` for a file that cannot be read; `NoRecordsError` where there is no
    run that has ended, or no such project; `WandbError` for a key that no run has.
    """
    sources = [source] if isinstance(source, str | os.PathLike) else list(source)
    runs = [run for one in sources for run in _runs(one)]
    ended = [run for run in runs if run.state in _STATUS or "status" in run.summary]
    if not ended:
        rest = f", but {len(runs)} that have not ended" if runs else ""
        raise NoRecordsError(f"no runs of wandb in {', '.join(map(str, sources))}{rest}")
    if len(ended) < len(runs):
        _log.warning("%d runs that have not ended are left out", len(runs) - len(ended))
    keys = dict(keys or {})
    for ours, theirs in keys.items():
        if not any(theirs in run.config or theirs in run.summary for run in ended):
            known = sorted({key for run in ended for key in (*run.config, *run.summary)})
            raise WandbError(f"no run has {theirs!r}, given for {ours!r}; they have {', '.join(known)}")
    table = DataFrame([_row(run, keys, study) for run in ended]).drop_duplicates("identity", ignore_index=True)
    if {"accuracy", "validation_accuracy"} <= {*table} and table["accuracy"].equals(table["validation_accuracy"]):
        _log.warning("one accuracy is both validation and test: a learning rate is chosen on what it is scored on")
    objects = [name for name in table if table[name].dtype == object]
    return table.assign(**{str(name): table[name].where(table[name].notna(), None) for name in objects})


def _runs(source: str | os.PathLike[str]) -> Iterable[WandbRun]:
    if Path(source).exists():
        return offline_runs(Path(source))
    if isinstance(source, str) and re.fullmatch(r"[^/.\\][^/\\]*(/[^/\\]+)?", source):
        return project_runs(source)
    raise NoRecordsError(f"{source} is neither a folder, nor a file, nor a project of wandb (ENTITY/PROJECT)")


def _row(run: WandbRun, keys: Mapping[str, str], study: str | None) -> dict[str, Any]:
    status = run.summary.get("status", _STATUS.get(run.state))
    own: dict[str, Any] = {
        "identity": run.id,
        "study": study or run.config.get("study"),
        "status": status,
        "reason": None if status == "completed" or "status" in run.summary else f"wandb says {run.state}",
        "slices": run.summary.get("slices") or list(_slices(run.summary)) or None,
    }
    logged = {**run.config, **run.summary}
    named, used = {}, set()
    for ours, theirs in {**_KEYS, **{ours: (key,) for ours, key in keys.items()}}.items():
        found = next((key for key in theirs if _is_value(ours, logged.get(key))), None)
        if found:
            named[ours] = logged[found]
            used |= {found} if ours != "family" else set()
    if "family" in named:
        named["family"] = re.split(r"[./]", named["family"])[-1]
    if "state.bytes" not in named and "state.elements" in named:
        named.setdefault("state.dtype", "float32")
        if width := _BYTES.get(named["state.dtype"]):
            named["state.bytes"] = named["state.elements"] * width
    settings = {_setting(key): value for key, value in run.config.items() if key not in used and _is_setting(key)}
    return {
        **own,
        "family": "unknown",
        **settings,
        **{name: value for key, value in run.summary.items() if key not in used and (name := _metric(run, key))},
        **named,
        "provenance.time": run.time,
        "provenance.host": run.host,
        "provenance.wandb": run.path,
    }


def _is_value(ours: str, value: Any) -> bool:
    if ours in _TEXTS:
        return isinstance(value, str) and value != "default"
    return value is not None and (ours not in _KEYS or _is_number(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_setting(key: str) -> bool:
    return key.partition(".")[0] not in _OF_LAUNCHING


def _setting(key: str) -> str:
    measured = key.startswith(("state.", "cost.", "provenance."))
    return key if "." in key and not measured else f"config.{key}"


def _metric(run: WandbRun, key: str) -> str | None:
    """Our name for a number of the summary, None for what is none.

    Where recallbench logged, its record is the summary, and its training curve beside it is none of the metrics.
    """
    if not _is_number(run.summary[key]) or key.startswith("_") or _SLICE.fullmatch(key):
        return None
    if key.startswith(("state.", "cost.")):
        return key
    if "metrics.accuracy" in run.summary or "state.bytes" in run.summary:
        return key.removeprefix("metrics.") if key.startswith("metrics.") else None
    return key.replace(".", "/")


def _slices(summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Accuracy by slice as zoology logs it: `valid/num_kv_pairs/accuracy-64`, or `valid/mqar_case/accuracy-256x64`."""
    found = [(match[1], match[2], value) for key, value in summary.items() if (match := _SLICE.fullmatch(key))]
    by_shape = [entry for entry in found if entry[0] == "mqar_case"]
    for key, value, accuracy in by_shape or found:
        names = ("sequence_length", "num_kv_pairs") if key == "mqar_case" else (key,)
        values = value.split("x") if key == "mqar_case" else [value]
        parts = [int(part) if part.isdecimal() else part for part in values]
        yield {**dict(zip(names, parts, strict=False)), "accuracy": accuracy}
