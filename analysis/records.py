"""Run records as one tidy DataFrame, from JSON or Parquet."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pandas import DataFrame

Source = str | os.PathLike[str]

_JSON_COLUMNS = b"recallbench.json_columns"


class BrokenRecord(ValueError):
    """A file that should hold run records cannot be read as such."""


class NoRecords(ValueError):
    """There is not one run record where records were looked for."""


def load(path: Source | Iterable[Source], *, study: str | None = None) -> DataFrame:
    """Load run records, one row a run.

    `path` is a runs directory (`<identity>/result.json` each; unfinished runs have none and are
    ignored), one `result.json`, a Parquet file from `save`, or several of these. A run found more
    than once counts once.

    Nested fields become dotted columns (`state.bytes`, `cost.seconds`); settings and metrics keep
    their own names (`mixer.feature_dim`, `seed`, `accuracy`). `slices` and `state.layers` stay lists
    of dicts. With `study`, only that study's runs: those that its manifest
    `studies/<study>.json` lists or, where there is no manifest, those recorded under its name; the
    column `study` then holds that name.

    **Raises** `BrokenRecord` for a file that cannot be read, `NoRecords` if there is none.
    """
    sources = [path] if isinstance(path, str | os.PathLike) else list(path)
    frames = [_read(Path(source), study) for source in sources]
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        of = f" of study {study!r}" if study else ""
        raise NoRecords(f"no run records{of} in {', '.join(map(str, sources))}")
    runs = frames[0] if len(frames) == 1 else pd.concat(frames)
    return runs.drop_duplicates("identity", ignore_index=True)


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


def by_slice(runs: DataFrame) -> DataFrame:
    """One row a run and slice: its columns replace those of the run (`accuracy`, `loss`).

    A run without slices has no row.
    """
    sliced = runs[runs["slices"].map(bool, na_action="ignore").eq(True)]
    rows = sliced.explode("slices", ignore_index=True)
    values = DataFrame(rows.pop("slices").tolist(), index=rows.index)
    return rows.drop(columns=values.columns, errors="ignore").join(values)


def _read(path: Path, study: str | None) -> DataFrame:
    if path.suffix == ".parquet":
        runs = _read_parquet(path)
        return runs if study is None else runs[runs["study"] == study]
    single = path.is_file()
    root = path.parent.parent if single else path
    manifest = root / "studies" / f"{study}.json"
    if study is not None and manifest.exists():
        members = [root / str(name) / "result.json" for name in _read_json(manifest, "identities")]
        files = [path] if single and path in members else [] if single else members
        records = list(_read_records(files))
        for record in records:
            record["study"] = study
    else:
        files = [path] if single else sorted(path.glob("*/result.json"))
        records = [r for r in _read_records(files) if study in (None, r.get("study"))]
    return _missing_as_none(DataFrame([_row(record) for record in records]))
