"""The run directory as anyone may read it, without torch: configuration, log, and last of all the record.

<runs>/<identity>/config.yaml     every setting, as resolved
<runs>/<identity>/log.jsonl       a line an epoch
<runs>/<identity>/checkpoint.pt   until the run has its record
<runs>/<identity>/claim.<g>       who works on it, until the run has its record
<runs>/<identity>/weights.pt      of a run that completed: what other ways of decoding start from
<runs>/<identity>/result.json     the record: one that exists is complete
<runs>/<identity>/error.txt       the traceback, of a run that failed
<runs>/<identity>/earlier/        records that a rerun replaced
<runs>/studies/<study>.json       the identities of a study's runs
"""

import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recallbench.claim import take
from recallbench.disk import write_atomically, writing


class RunDirectory:
    """The files of one run under the folder `runs`."""

    def __init__(self, runs: Path | str, identity: str):
        self.identity = identity
        self.path = Path(runs) / identity
        self.record_path = self.path / "result.json"
        self.checkpoint_path = self.path / "checkpoint.pt"
        self.weights_path = self.path / "weights.pt"
        self.log_path = self.path / "log.jsonl"
        self.error_path = self.path / "error.txt"

    def has_record(self) -> bool:
        return self.record_path.exists()

    def record(self) -> dict[str, Any]:
        """The record that is there."""
        return json.loads(self.record_path.read_text())

    def set_aside(self) -> None:
        """Make room for a rerun: the record moves to `earlier/`, where nothing overwrites it.

        A checkpoint beside it, of a process that was killed after writing the record, is no part of the rerun.
        **Raises** `DiskTrouble`.
        """
        earlier = self.path / "earlier"
        with writing(earlier):
            self.checkpoint_path.unlink(missing_ok=True)
            earlier.mkdir(parents=True, exist_ok=True)
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
            os.replace(self.record_path, earlier / f"{stamp}.result.json")
            for beside in (self.log_path, self.error_path):
                if beside.exists():
                    os.replace(beside, earlier / f"{stamp}.{beside.name}")


def manifest_path(runs: Path | str, study: str) -> Path:
    """Where a study's runs are listed."""
    return Path(runs) / "studies" / f"{study}.json"


def study_identities(runs: Path | str, study: str) -> list[str]:
    """The runs of a study. **Raises** `FileNotFoundError` where it has never been run."""
    return json.loads(manifest_path(runs, study).read_text())["identities"]


def write_study(runs: Path | str, study: str, identities: Iterable[str]) -> None:
    """Add the runs of a study to its manifest: a study called with fewer points than before loses none of them.

    Several processes may do so at once: each reads what the one before has written. **Raises** `DiskTrouble`.
    """
    path, added = manifest_path(runs, study), list(identities)
    if path.exists() and set(added) <= set(_known(path)):
        return
    turn = path.with_suffix(".turn")
    while (claim := take(turn)) is None:
        time.sleep(0.05)
    try:
        both = list(dict.fromkeys([*_known(path), *added]))
        write_atomically(path, json.dumps({"study": study, "identities": both}))
    finally:
        claim.finish()
        with suppress(OSError):  # another waits in it for its turn
            turn.rmdir()


def _known(path: Path) -> list[str]:
    try:
        return json.loads(path.read_text())["identities"]
    except FileNotFoundError:
        return []
