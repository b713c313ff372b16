"""Run records as one tidy DataFrame, from JSON or Parquet."""

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pandas import DataFrame, Series

Source = str | os.PathLike[str]

_JSON_COLUMNS = b"recallbench.json_columns"

_OWN = {"identity", "study", "status", "reason", "family", "slices"}
_MEASURED = {"state", "cost", "provenance"}
"""A record's own fields, single and nested; its others are settings, dotted, or metrics, but for the seed."""


class BrokenRecordError(ValueError):
    """A file that should hold run records cannot be read as such."""


class NoRecordsError(ValueError):
    """There is not one run record where records were looked for."""


def load(path: Source | Iterable[Source], *, study: str | None = None) -> DataFrame:
    """Load run records, one row a run.

    `path` is a runs directory (`<identity>/result.json` each; unfinished runs have none and are
    ignored), one `result.json`, a Parquet file from `save`, or several of these. A run found more
    than once counts once.

    Nested fields become dotted columns (`state.bytes`, `cost.seconds`); settings and metrics keep
    their own names (`mixer.feature_dim`, `seed`, `accuracy`); `slices` and `state.layers` stay
    lists of dicts. With `study`, only that study's runs: those that its manifest
    `studies/<study>.json` lists or, where there is no manifest, those recorded under its name; the
    column `study` then holds that name.

    **Raises** `BrokenRecordError` for a file that cannot be read, `NoRecordsError` where there is
    no record at all.
    """
    sources = [path] if isinstance(path, str | os.PathLike) else list(path)
    frames = [_read(Path(source), study) for source in sources]
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        of = f" of study {study!r}" if study else ""
        raise NoRecordsError(f"no run records{of} in {', '.join(map(str, sources))}")
    runs = frames[0] if len(frames) == 1 else pd.concat(frames)
    return _missing_as_none(runs.drop_duplicates("identity", ignore_index=True))


def save(runs: DataFrame, path: Source) -> None:
    """Write runs as Parquet, from which `load` reads an equal DataFrame; the file appears whole.

    Save one study at a time: Parquet has no manifest to say which runs two studies share.
    """
    path = Path(path)
    # Lists of dicts, and settings that are a number here and a word there, have no one Arrow type.
    json_columns = [name for name in runs if runs[name].dtype == object]
    encoded = runs.assign(**{str(name): runs[name].map(json.dumps) for name in json_columns})
    table = pa.Table.from_pandas(encoded, preserve_index=False)
    metadata = {**(table.schema.metadata or {}), _JSON_COLUMNS: json.dumps(json_columns)}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(table.replace_schema_metadata(metadata), unfinished, compression="zstd")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def as_records(runs: DataFrame) -> Iterator[dict[str, Any]]:
    """The run record of each row, from which `load` reads that row again; what a row lacks is left out."""
    for row in runs.to_dict("records"):
        record: dict[str, Any] = {"study": None, "reason": None, "slices": None, "config": {}, "metrics": {}}
        for column, value in row.items():
            name = str(column)
            group, *path = name.split(".")
            if value is None or (isinstance(value, float) and math.isnan(value)):
                continue
            if name in _OWN:
                at, last = record, name
            elif group in _MEASURED:
                at, last = record.setdefault(group, {}), path[-1]
                for part in path[:-1]:
                    at = at.setdefault(part, {})
            else:
                at, last = record["config" if path or name == "seed" else "metrics"], name
            # A column with gaps holds its integers as floats.
            at[last] = int(value) if isinstance(value, float) and value.is_integer() else value
        yield {**record, "metrics": record["metrics"] or None}


def by_slice(runs: DataFrame) -> DataFrame:
    """One row a run and slice: its columns replace those of the run (`accuracy`, `loss`).

    A run without slices has no row.
    """
    sliced = runs.loc[runs["slices"].map(bool).astype(bool)]
    rows = sliced.explode("slices", ignore_index=True)
    values = DataFrame(rows.pop("slices").tolist(), index=rows.index)
    return rows.drop(columns=values.columns, errors="ignore").join(values)


def _read(path: Path, study: str | None) -> DataFrame:
    if path.suffix == ".parquet":
        runs = _read_parquet(path)
        return runs if study is None else runs.loc[runs["study"] == study]
    single = path.is_file()
    root = path.parent.parent if single else path
    members = _manifest(root, study) if study else None
    if single:
        files = [path]
    elif members is not None:
        files = [root / identity / "result.json" for identity in sorted(members)]
    else:
        files = sorted(root.glob("*/result.json"), key=str)
    rows = [_row(record) for record in _records(files)]
    if members is not None:
        rows = [{**row, "study": study} for row in rows if row["identity"] in members]
    elif study is not None:
        rows = [row for row in rows if row["study"] == study]
    return DataFrame(rows)


def _manifest(root: Path, study: str) -> set[str] | None:
    """The identities that belong to a study, None where it has no manifest."""
    file = root / "studies" / f"{study}.json"
    return set(_read_json(file, {"identities"})["identities"]) if file.exists() else None


def _records(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    keys = {"identity", "study", "status", "family", "config"}
    return (_read_json(file, keys) for file in files if file.exists())


def _read_json(file: Path, keys: set[str]) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise BrokenRecordError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict) or keys - content.keys():
        raise BrokenRecordError(f"{file} is no record: it lacks one of {', '.join(sorted(keys))}")
    return content


def _read_parquet(file: Path) -> DataFrame:
    if not file.exists():
        return DataFrame(columns=["study"])
    try:
        table = pq.read_table(file)
        json_columns = json.loads((table.schema.metadata or {})[_JSON_COLUMNS])
    except (OSError, ValueError, KeyError) as error:
        raise BrokenRecordError(f"{file} cannot be read as saved run records: {error}") from error
    runs = table.to_pandas()
    decoded = {name: Series(map(json.loads, runs[name]), dtype=object) for name in json_columns}
    return runs.assign(**decoded)


def _row(record: dict[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in record.items() if key not in ("config", "metrics")}
    return _flat(own) | _flat(record["config"]) | _flat(record.get("metrics") or {})


def _flat(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _missing_as_none(runs: DataFrame) -> DataFrame:
    """One kind of missing in columns of any type: None, which JSON knows, not NaN."""
    objects = {str(name): runs[name] for name in runs if runs[name].dtype == object}
    return runs.assign(**{name: column.where(column.notna(), None) for name, column in objects.items()})
