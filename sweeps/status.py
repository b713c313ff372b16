"""How far a study is, from what is on disk and in SLURM's queue; nothing here imports torch."""

import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from recallbench.claim import Holder, holder, server_time
from sweeps.launches import Launch, launches
from sweeps.squeue import SlurmUnavailable, Task, ended, queued

STATES = {
    "completed": ("done", "green"),
    "running": ("running", "cyan"),
    "queued": ("queued", "blue"),
    "pending": ("pending", "default"),
    "failed": ("failed", "red"),
    "diverged": ("diverged", "yellow"),
    "out_of_memory": ("out of memory", "yellow"),
}
"""What a run can be, as it is shown. Queued: a task that will carry it out waits or runs. Pending: nobody has it."""

LATELY = 3600
"""Seconds that count as lately where a rate is told."""

MANY = 20
"""Lines of one kind, at most."""

BY_THE_WAY = re.compile(r"srun: (?!error)")
"""What srun says while a step ends for a reason that another line tells."""


@dataclass(frozen=True)
class Standing:
    """Where a run stands. `detail`: who runs it, why it failed or why its task ended; `ended`: of its record, s."""

    identity: str
    state: str
    detail: str = ""
    ended: float | None = None
    holder: Holder | None = None


@dataclass(frozen=True)
class Survey:
    """Where all runs of a study stand; `notes`: what could not be looked at."""

    study: str
    runs: list[Standing]
    notes: list[str]

    def of(self, *states: str) -> list[Standing]:
        return [run for run in self.runs if run.state in states]


def survey(folder: Path, study: str, identities: Iterable[str]) -> Survey:
    """Look at every run of a study in the folder of runs, once."""
    launched = launches(folder / "launches" / study)
    tasks: list[Task] = []
    notes = []
    if launched:
        try:
            tasks = queued(study)
        except SlurmUnavailable as error:
            notes.append(f"{error}: what is queued shows as pending")
    carrying = {run: task for task, runs in _pairs(tasks, launched) for run in runs}
    now = server_time(folder)
    standings = [_standing(folder / identity, carrying, now) for identity in identities]
    lost = {run.identity for run in standings if run.state == "pending"}
    why = _why_ended(launched, lost) if lost and not notes else {}
    return Survey(
        study, [Standing(r.identity, r.state, why[r.identity]) if r.identity in why else r for r in standings], notes
    )


def _pairs(tasks: Sequence[Task], launched: Sequence[Launch]) -> Iterator[tuple[Task, list[str]]]:
    """The tasks in the queue with the runs that each carries out."""
    of = {launch.folder.name: launch for launch in launched}
    for task in tasks:
        if launch := of.get(task.launch.name):
            yield task, launch.tasks[task.index]


def _standing(directory: Path, carrying: dict[str, Task], now: float) -> Standing:
    identity, path = directory.name, directory / "result.json"
    try:
        record = json.loads(path.read_bytes())
        return Standing(identity, record["status"], record["reason"] or "", path.stat().st_mtime)
    except FileNotFoundError:
        pass
    if held := holder(directory, now):
        return Standing(identity, "running", str(held), holder=held)
    if task := carrying.get(identity):
        waits = f" ({task.reason})" if task.state == "PENDING" and task.reason != "None" else ""
        return Standing(identity, "queued", f"SLURM task {task.name} {task.state.lower()}{waits}")
    return Standing(identity, "pending")


def _why_ended(launched: Sequence[Launch], lost: set[str]) -> dict[str, str]:
    """For runs that nobody has any more: how the last task that had them ended, by sacct or by its log."""
    last: dict[str, tuple[Launch, str]] = {}
    for launch in launched:
        if arrays := [path.name.partition("_")[0] for path in launch.folder.glob("*_submission.sh")]:
            last |= {run: (launch, f"{arrays[0]}_{i}") for i, runs in enumerate(launch.tasks) for run in runs}
    of = {run: last[run] for run in lost if run in last}
    accounts = ended(sorted({task for _, task in of.values()}))
    return {run: _told(launch, task, accounts.get(task)) for run, (launch, task) in of.items()}


def _told(launch: Launch, task: str, state: str | None) -> str:
    try:
        lines = (launch.folder / f"{task}_0_log.out").read_text(errors="replace").splitlines()
        told = (line.strip() for line in reversed(lines) if line.strip() and not BY_THE_WAY.match(line))
        said = next(told, "it said nothing")
    except FileNotFoundError:
        said = "it never began"
    return f"SLURM task {task} ended: {f'{state}; ' if state else ''}{said}"


def rate(ended_at: Sequence[float], now: float) -> float | None:
    """Runs a second of late, None where fewer than two ended."""
    recent = [t for t in ended_at if now - t < LATELY]
    return len(recent) / (now - min(recent)) if len(recent) > 1 else None


def show(found: Survey) -> Group:
    """The survey as a table by state, and a line for each thing worth one."""
    counts = Counter(run.state for run in found.runs)
    table = Table(title=f"{found.study}: {len(found.runs)} runs", title_justify="left", title_style="bold")
    table.add_column("state")
    table.add_column("runs", justify="right")
    for state, (name, style) in STATES.items():
        if counts[state]:
            table.add_row(Text(name, style), str(counts[state]))
    lines = [_pace(found), *found.notes]
    for state in ("running", "failed", "out_of_memory", "pending"):
        told = [run for run in found.of(state) if run.detail]
        name, style = STATES[state]
        lines += [f"[{style}]{name}[/] {run.identity} {escape(run.detail)}" for run in told[:MANY]]
        if len(told) > MANY:
            lines.append(f"and {len(told) - MANY} more {name}")
    return Group(table, *(Text.from_markup(line) for line in lines if line))


def _pace(found: Survey) -> str:
    now = time.time()
    pace = rate([run.ended for run in found.runs if run.ended], now)
    left = len(found.of("running", "queued", "pending"))
    if not left:
        return "nothing left to run"
    if not found.of("running", "queued"):
        return "nothing runs; the command that started the study goes on with what is left"
    if not pace:
        return ""
    return f"{pace * 3600:.3g} runs an hour lately, about {_duration(left / pace)} left"


def _duration(seconds: float) -> str:
    """90 -> 2 min, 5400 -> 1.5 h."""
    for length, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.0f} s"
