"""The run directory of the process that carries out the run: what it writes, as long as it holds the claim."""

import io
import json
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import yaml
from torch import Tensor

from recallbench.any_run import AnyRun
from recallbench.claim import Claim, ClaimLost, take
from recallbench.disk import write_atomically, write_once, writing
from recallbench.record import RunDirectory

R = TypeVar("R", bound=AnyRun)


class WritableDirectory(RunDirectory, Generic[R]):
    """The files of one run, to be written to.

    Whatever is written **raises** `ClaimLost` instead where another process has taken over the run, and `DiskTrouble`
    where the disk does not take it.
    """

    def __init__(self, runs: Path | str, run: R):
        super().__init__(runs, run.identity)
        self.run = run
        self.claim: Claim | None = None

    def take(self) -> Claim | None:
        """Claim the run for this process, as `recallbench.claim.take`."""
        self.claim = take(self.path)
        return self.claim

    def holds_claim(self) -> bool:
        """Whether no other process has taken over the run."""
        with writing(self.path):
            return self.claim is None or self.claim.held()

    def begin(self) -> None:
        """Write the configuration."""
        self._write("config.yaml", yaml.safe_dump(self.run.settings, sort_keys=False))

    def write_log(self, entries: list[dict[str, Any]]) -> None:
        """The whole log, so that a run which resumes from a checkpoint does not repeat the lines written after it."""
        self._write("log.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries))

    def write_error(self, traceback: str) -> None:
        self._write("error.txt", traceback)

    def save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The run has got on: who died at it before counts no more."""
        self._write("checkpoint.pt", _saved(checkpoint))
        if self.claim is not None:
            self.claim.forget_earlier()

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint, or None where there is none."""
        if not self.checkpoint_path.exists():
            return None
        return torch.load(self.checkpoint_path, map_location="cpu", weights_only=True)

    def save_weights(self, weights: dict[str, Tensor]) -> None:
        self._write("weights.pt", _saved({name: tensor.cpu() for name, tensor in weights.items()}))

    def load_weights(self) -> dict[str, Tensor]:
        return torch.load(self.weights_path, map_location="cpu", weights_only=True)

    def write_record(
        self, study: str | None, status: str, reason: str | None, measured: dict[str, Any]
    ) -> dict[str, Any]:
        """Write the record, then remove checkpoint and claim; `measured`: metrics, slices, state, cost, provenance.

        A record that is there already stays: the one that was first counts.
        """
        record = {
            "identity": self.run.identity,
            "study": study,
            "status": status,
            "reason": reason,
            "family": self.run.family,
            "config": self.run.settings,
            **measured,
        }
        self._check_claim()
        write_once(self.record_path, json.dumps(record, indent=1))
        with writing(self.path):
            for leftover in self.path.glob("checkpoint*"):
                leftover.unlink(missing_ok=True)
            if self.claim is not None:
                self.claim.finish()
        return record

    def _write(self, name: str, content: str | memoryview) -> None:
        self._check_claim()
        write_atomically(self.path / name, content)

    def _check_claim(self) -> None:
        if not self.holds_claim():
            raise ClaimLost


def _saved(content: Any) -> memoryview:
    """What torch writes for it: into memory first, since its own writer does not tell a full disk from a bug."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()
