"""Training curves: what runs logged while they trained, from the logs beside their records."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from pandas import DataFrame

from analysis.records import BrokenRecordError, Source


def curves(path: Source | Iterable[Source]) -> DataFrame:
    """The training curves of all runs that have a record and a log, one row a run and log entry.

    `path` is as in `analysis.load`: in a runs directory each record has a `log.jsonl` beside it. A
    Parquet file holds records alone, so its runs have no rows.

    **Columns:** `identity`, then what was logged: `epoch`, `step`, `train_loss`, `validation_loss`,
    `validation_accuracy`, ... (NaN where an entry lacks it).

    **Raises** `BrokenRecordError` for a log that cannot be read.
    """
    sources = [path] if isinstance(path, str | os.PathLike) else list(path)
    logs = {log.parent.name: log for source in sources for log in _logs(Path(source))}
    return DataFrame([{"identity": run, **entry} for run, log in logs.items() for entry in _entries(log)])


def _logs(source: Path) -> Iterable[Path]:
    if source.suffix == ".parquet":
        return []
    records = [source] if source.is_file() else sorted(source.glob("*/result.json"))
    logs = (record.with_name("log.jsonl") for record in records)
    return (log for log in logs if log.exists())


def _entries(log: Path) -> list[dict[str, float]]:
    try:
        return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise BrokenRecordError(f"{log} cannot be read: {error}") from error
