"""The run directory: configuration, log, checkpoint while training, and last of all the record.

<runs>/<identity>/config.yaml     every setting, as resolved
<runs>/<identity>/log.jsonl       a line an epoch
<runs>/<identity>/checkpoint.pt   until the run has its record
<runs>/<identity>/weights.pt      of a run that completed: what other ways of decoding start from
<runs>/<identity>/result.json     the record: one that exists is complete
<runs>/<identity>/error.txt       the traceback, of a run that failed
<runs>/<identity>/earlier/        records that a rerun replaced
<runs>/studies/<study>.json       the identities of a study's runs
"""

import functools
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from recallbench.config import Run

PACKAGES = ("torch", "triton", "numpy", "pydantic", "hydra-core")


class RunDirectory:
    """The files of one run under the folder `runs`."""

    def __init__(self, runs: Path | str, run: Run):
        self.run = run
        self.path = Path(runs) / run.identity
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

    def begin(self) -> None:
        """Write the configuration."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "config.yaml", yaml.safe_dump(self.run.settings, sort_keys=False))

    def set_aside(self) -> None:
        """Make room for a rerun: the record moves to `earlier/`, where nothing overwrites it.

        A checkpoint beside it, of a process that was killed after writing the record, is no part of the rerun.
        """
        self.checkpoint_path.unlink(missing_ok=True)
        earlier = self.path / "earlier"
        earlier.mkdir(parents=True, exist_ok=True)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        os.replace(self.record_path, earlier / f"{stamp}.result.json")
        for beside in (self.log_path, self.error_path):
            if beside.exists():
                os.replace(beside, earlier / f"{stamp}.{beside.name}")

    def write_log(self, entries: list[dict[str, Any]]) -> None:
        """The whole log, so that a run which resumes from a checkpoint does not repeat the lines written after it."""
        write_atomically(self.log_path, "".join(json.dumps(entry) + "\n" for entry in entries))

    def save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        _save_atomically(self.checkpoint_path, checkpoint)

    def save_weights(self, weights: dict[str, torch.Tensor]) -> None:
        _save_atomically(self.weights_path, {name: tensor.cpu() for name, tensor in weights.items()})

    def load_weights(self) -> dict[str, torch.Tensor]:
        return torch.load(self.weights_path, map_location="cpu", weights_only=True)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint, or None where there is none."""
        if not self.checkpoint_path.exists():
            return None
        return torch.load(self.checkpoint_path, map_location="cpu", weights_only=True)

    def write_record(
        self, study: str | None, status: str, reason: str | None, measured: dict[str, Any]
    ) -> dict[str, Any]:
        """Write the record, then remove the checkpoint; `measured` holds metrics, slices, state, cost, provenance."""
        record = {
            "identity": self.run.identity,
            "study": study,
            "status": status,
            "reason": reason,
            "family": self.run.family,
            "config": self.run.settings,
            **measured,
        }
        write_atomically(self.record_path, json.dumps(record, indent=1))
        for leftover in self.path.glob("checkpoint*"):
            leftover.unlink()
        return record


def write_study(runs: Path | str, study: str, identities: Iterable[str]) -> None:
    """Add the runs of a study to its manifest: a study called with fewer points than before loses none of them."""
    path = Path(runs) / "studies" / f"{study}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text())["identities"] if path.exists() else []
    write_atomically(path, json.dumps({"study": study, "identities": list(dict.fromkeys([*known, *identities]))}))


def write_atomically(path: Path, text: str) -> None:
    """All of the text or, whatever happens, what was there before."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w") as file:
        file.write(text)
        _to_disk(file)
    os.replace(partial, path)


def _save_atomically(path: Path, content: Any) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        torch.save(content, file)
        _to_disk(file)
    os.replace(partial, path)


def provenance(device: torch.device, members: int) -> dict[str, Any]:
    """Where a result comes from: code and package versions, device, host, time, and how many members trained along."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "code_version": code_version(),
        "packages": {package: _version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "device": name,
        "host": platform.node(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "members": members,
    }


@functools.cache
def code_version() -> str:
    """The commit of the checkout that runs, marked where it has uncommitted changes, or else the package's version."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    tracked = subprocess.run([*command[:3], "ls-files", "--error-unmatch", __file__], capture_output=True, check=False)
    if tracked.returncode == 0:
        described = subprocess.run(command, capture_output=True, text=True, check=False)
        if described.returncode == 0:
            return described.stdout.strip()
    return _version("recallbench") or "unknown"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
