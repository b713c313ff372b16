"""Runs of Weights and Biases as wandb keeps them: from a project online, or from the files of its offline mode."""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track

from analysis.records import BrokenRecordError, NoRecordsError

EXPORT = "recallbench-export"
"""The job of a run that only brings a study, and is itself none of anyone's."""


class NoWandbError(ImportError):
    """wandb, which is an extra, is not installed."""

    def __init__(self):
        super().__init__("runs of wandb need wandb: pip install 'recallbench[wandb]'")


class WandbError(ValueError):
    """What was asked of wandb cannot be had: why, in one sentence."""


class WandbRun(NamedTuple):
    """What wandb knows of a run."""

    path: str  # entity/project/id, as far as it is known
    id: str
    state: str  # finished, failed, crashed, killed, running, ...
    config: dict[str, Any]  # nested keys dotted: model.d_model
    summary: dict[str, Any]  # the last of each value that was logged, as in valid/accuracy
    time: str
    host: str | None


def project_runs(project: str) -> Iterator[WandbRun]:
    """The runs of a project online, `ENTITY/PROJECT` or, of one's own, `PROJECT`.

    **Raises** `NoWandbError`; `NoRecordsError` where there is no such project, or no login.
    """
    try:
        import wandb  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise NoWandbError from error
    try:
        found = wandb.Api().runs(project, lazy=False)
        for run in track(found, project, total=len(found), console=Console(stderr=True)):
            if run.job_type == EXPORT:
                continue
            config, summary = _dotted(run.config), _dotted(run.summary)
            yield WandbRun("/".join(run.path), run.id, run.state, config, summary, run.created_at, None)
    except (ValueError, wandb.Error) as error:
        raise NoRecordsError(f"wandb project {project!r} cannot be read: {error}") from error


def offline_runs(folder: Path) -> list[WandbRun]:
    """The runs in the files that `WANDB_MODE=offline` leaves: of a folder with all below, or of one `.wandb` file.

    A run that was resumed has several files, of which the latest is taken.

    **Raises** `NoWandbError`; `BrokenRecordError` for a file that is none of wandb's.
    """
    files = [folder] if folder.is_file() else sorted(folder.rglob("run-*.wandb"), key=lambda file: file.parent.name)
    return list({run.id: run for file in files if (run := _offline_run(file))}.values())


def _offline_run(file: Path) -> WandbRun | None:
    """The run of a file, None for an export and where the file ends before it says which run it is."""
    try:
        from google.protobuf.message import DecodeError  # noqa: PLC0415 - comes with wandb
        from wandb.proto.wandb_internal_pb2 import Record  # noqa: PLC0415  # pyright: ignore[reportAttributeAccessIssue] - made as it loads
    except ImportError as error:
        raise NoWandbError from error
    about, state = None, "running"
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    try:
        for content in _log_records(file.read_bytes()):
            record = Record.FromString(content)
            if record.HasField("run"):
                about = record.run
            if record.HasField("exit"):
                state = "failed" if record.exit.exit_code else "finished"
                summary.setdefault("_runtime", record.exit.runtime)
            config |= _items(record.run.config.update) | _items(record.config.update)
            summary |= _items(record.history.item) | _items(record.summary.update)
    except (OSError, ValueError, DecodeError) as error:
        raise BrokenRecordError(f"{file} cannot be read as a run of wandb: {error}") from error
    if about is None or about.job_type == EXPORT:
        return None
    path = "/".join(filter(None, (about.entity, about.project, about.run_id)))
    time = datetime.fromtimestamp(about.start_time.seconds, UTC).isoformat()
    return WandbRun(path, about.run_id, state, config, summary, time, about.host or None)


def _log_records(content: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log behind wandb's header of 7 bytes; the last may be torn, and is then left out.

    Blocks of 32 KiB hold chunks (checksum, length, kind) + data, and a record is one chunk or a first, middle ones
    and a last. Source: https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    block, header, whole, last = 32768, 7, 1, 4
    if content[:4] != b":W&B":
        raise ValueError("it does not begin as one")
    at, record = header, b""
    while at + header <= len(content):
        room = block - at % block
        if room < header:
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        at += header + length
        if at > len(content):
            return
        record += content[at - length : at]
        if kind in (whole, last):
            yield record
            record = b""


def _items(items: Any) -> dict[str, Any]:
    """What wandb writes as pairs of a key, or a path of keys, and JSON."""
    return _dotted({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})


def _dotted(mapping: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; a medium (image, table, histogram: they have a `_type`) is left out."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) or hasattr(value, "items"):
            flat |= {} if "_type" in value.keys() else _dotted(value, f"{prefix}{key}.")  # noqa: SIM118 - not a dict
        elif not (isinstance(value, float) and math.isnan(value)):
            flat[f"{prefix}{key}"] = value
    return flat
