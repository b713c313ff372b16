"""What SLURM says of a study's tasks, wherever they were submitted from, and how it is told to drop them."""

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 20
"""Seconds that an answer may take."""

FIELDS = "%F|%K|%T|%r|%k"
"""squeue's: the array, the index in it, the state, why it waits, the comment."""


class SlurmUnavailable(RuntimeError):
    """SLURM is not installed here, or does not answer; says which."""


@dataclass(frozen=True)
class Task:
    """A task of a job array that waits or runs; `launch` is the folder of the launch that it belongs to."""

    array: str
    index: int
    state: str
    reason: str
    launch: Path

    @property
    def name(self) -> str:
        return f"{self.array}_{self.index}"


def job_name(study: str) -> str:
    """The name under which a study's tasks are queued."""
    return f"recallbench:{study}"


def queued(study: str) -> list[Task]:
    """The tasks of a study that wait or run. **Raises** `SlurmUnavailable`."""
    said = ask("squeue", "--array", "--noheader", f"--name={job_name(study)}", f"--format={FIELDS}")
    found = [line.split("|", 4) for line in said.splitlines()]
    return [Task(array, int(i), state, why, Path(folder)) for array, i, state, why, folder in found if i.isdigit()]


def ended(tasks: Sequence[str]) -> dict[str, str]:
    """How tasks ended, name -> SLURM's word for it, as far as the cluster keeps accounts (sacct)."""
    if not tasks:
        return {}
    try:
        said = ask(
            "sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State", f"--jobs={','.join(tasks)}"
        )
    except SlurmUnavailable:
        return {}
    return dict(line.split("|", 1) for line in said.splitlines() if "|" in line)


def cancel(arrays: Iterable[str]) -> None:
    """Drop what waits of some arrays, and ask what runs to save and leave. **Raises** `SlurmUnavailable`."""
    ask("scancel", *arrays)


def ask(*command: str) -> str:
    """What one of SLURM's commands prints. **Raises** `SlurmUnavailable`."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)
    except FileNotFoundError:
        raise SlurmUnavailable(f"{command[0]} is not installed here") from None
    except subprocess.TimeoutExpired:
        raise SlurmUnavailable(f"{command[0]} has not answered for {PATIENCE} s") from None
    except subprocess.CalledProcessError as error:
        raise SlurmUnavailable(
            f"{command[0]} failed: {(error.stderr.strip().splitlines() or ['no reason given'])[-1]}"
        ) from None
    return done.stdout
