"""Launches on disk: by which commands a study was launched, and what was handed to a cluster, task by task.

<runs>/launches/<study>/commands/<hash>.json   a command, and the runs that they make
<runs>/launches/<study>/<time>/tasks.jsonl     for each task its runs; then a line for each task: its jobs' settings

The second leads a cluster's queue back to runs. It is there before the cluster is asked for anything, and stays.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from recallbench.disk import write_atomically, writing

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Launch:
    """A launch: its folder, and for each task the identities of its runs."""

    folder: Path
    tasks: list[list[str]]

    def jobs(self, task: int) -> list[Settings]:
        """What a task carries out, as configurations."""
        with (self.folder / "tasks.jsonl").open() as file:
            return json.loads(next(islice(file, 1 + task, None)))


def write_launch(folder: Path, tasks: Sequence[tuple[Sequence[str], Sequence[Settings]]]) -> Launch:
    """File a launch in a new folder within `folder`; each task is the identities of its runs, and its jobs.

    **Raises** `DiskTrouble`.
    """
    own = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
    identities = [list(runs) for runs, _ in tasks]
    with writing(own):
        own.mkdir(parents=True)
    lines = (json.dumps(line) for line in (identities, *(jobs for _, jobs in tasks)))
    write_atomically(own / "tasks.jsonl", "\n".join(lines))
    return Launch(own, identities)


def read_launch(folder: Path) -> Launch | None:
    """A launch of earlier, or None where its folder is gone or never came to hold one."""
    try:
        with (folder / "tasks.jsonl").open() as file:
            return Launch(folder, json.loads(file.readline()))
    except FileNotFoundError:
        return None


def launches(folder: Path) -> list[Launch]:
    """All launches within `folder`, the earliest first."""
    found = (read_launch(each) for each in sorted(folder.glob("*/")))
    return [launch for launch in found if launch is not None]


def launch_folder(runs: Path | str, study: str) -> Path:
    """Where the launches of a study are filed."""
    return Path(runs).absolute() / "launches" / study


def write_command(folder: Path, module: str, arguments: Sequence[str], runs: Sequence[str]) -> None:
    """Keep the command that a study was launched by, `python -m MODULE ARGUMENTS`. **Raises** `DiskTrouble`."""
    path = folder / "commands" / f"{hashlib.sha256(json.dumps([module, *arguments]).encode()).hexdigest()[:16]}.json"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"module": module, "arguments": list(arguments), "runs": list(runs)}))


def commands_for(folder: Path, runs: set[str]) -> list[list[str]]:
    """The latest commands that make some runs, none more than it takes; each a module and its arguments."""
    found, left = [], set(runs)
    for path in sorted(folder.glob("commands/*.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        command = json.loads(path.read_bytes())
        if left & set(command["runs"]):
            found.append([command.get("module", "recallbench"), *command["arguments"]])
            left -= set(command["runs"])
    return found
