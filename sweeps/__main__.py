"""`python -m sweeps status|retry|cancel|export|best STUDY`, `import FILE`: studies seen and steered from here."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from recallbench.disk import DiskTrouble, write_once, writing
from recallbench.record import RunDirectory, study_identities, write_study
from sweeps.launches import commands_for, launch_folder
from sweeps.squeue import SlurmUnavailable, queued
from sweeps.squeue import cancel as cancel_arrays
from sweeps.status import Survey, show, survey

PERIOD = 5.0
"""Seconds between two looks of `status --watch`."""

AGAIN = ("failed", "out_of_memory")
"""How a run ended that is worth another try; what diverged would diverge again."""


def main() -> int:
    """Run the command line: 0, or 2 where there is no such study."""
    asked = _arguments()
    if asked.command is import_:
        return import_(asked)
    known = sorted(path.stem for path in asked.runs.glob("studies/*.json"))
    if asked.study not in known:
        there = f"there are {', '.join(known)}" if known else "there is none yet"
        _say(f"there is no study {asked.study} in {asked.runs}; {there}", Console(stderr=True))
        return 2
    return asked.command(asked)


def status(asked: argparse.Namespace) -> int:
    """Show how far the study is, and with `--watch` go on doing so until nothing runs or waits."""
    found = _survey(asked)
    if not asked.watch:
        Console().print(show(found), soft_wrap=True, highlight=False)
        return 0
    with suppress(KeyboardInterrupt), Live(show(found), auto_refresh=False) as live:
        while found.of("running", "queued"):
            time.sleep(PERIOD)
            found = _survey(asked)
            live.update(show(found), refresh=True)
    return 0


def retry(asked: argparse.Namespace) -> int:
    """Set aside the records of what failed or was out of memory, and launch the study as it was launched last."""
    folder = launch_folder(asked.runs, asked.study)
    again = [run.identity for run in _survey(asked).of(*AGAIN)]
    if not again:
        _say("nothing failed")
        return 0
    commands = commands_for(folder, set(again))
    if not commands:
        _say(
            f"{asked.runs} does not tell how {asked.study} was launched; rerun=true runs it again", Console(stderr=True)
        )
        return 2
    for identity in again:
        RunDirectory(asked.runs, identity).set_aside()
    _say(f"{len(again)} set aside, each in its folder's earlier/")
    for again_by in commands:
        command = [sys.executable, "-m", *again_by, *asked.overrides]
        if status := subprocess.run(command, check=False).returncode:
            return status
    return 0


def cancel(asked: argparse.Namespace) -> int:
    """Drop the study's arrays from SLURM's queue, and have its processes on this machine save and leave."""
    try:
        arrays = sorted({task.array for task in queued(asked.study)})
        if arrays:
            cancel_arrays(arrays)
        _say(f"SLURM: cancelled {', '.join(arrays)}" if arrays else "SLURM: nothing of it is queued")
    except SlurmUnavailable as error:
        _say(f"{error}: what may be queued there stays")
    running = _survey(asked).of("running")
    here = {
        _launcher_of(run.holder.pid) for run in running if run.holder and run.holder.here and run.holder.job is None
    }
    asked_to_stop = [pid for pid in sorted(here) if _ask_to_stop(pid)]
    if asked_to_stop:
        _say(f"this machine: asked {', '.join(map(str, asked_to_stop))} to save and leave")
    for run in running:
        if run.holder and not run.holder.here and run.holder.job is None:
            _say(f"{run.identity} goes on, out of reach: {run.detail}")
    return 0


def _launcher_of(pid: int) -> int:
    """The process that started a worker, and would start another in its place; of any other process itself."""
    with suppress(OSError):
        if b"sweeps.worker" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid


def _ask_to_stop(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return False
    return True


def export(asked: argparse.Namespace) -> int:
    """Write all records of the study as one Parquet file, those that the file holds already included."""
    import analysis  # noqa: PLC0415 - pandas, for these commands alone

    out = asked.out or Path(f"{asked.study}.parquet")
    try:
        runs = analysis.load([asked.runs, *([out] if out.exists() else [])], study=asked.study)
    except (analysis.BrokenRecordError, analysis.NoRecordsError) as error:
        _say(str(error), Console(stderr=True))
        return 2
    analysis.save(runs, out)
    _say(f"{len(runs)} runs in {out}")
    return 0


def best(asked: argparse.Namespace) -> int:
    """Name the trained runs of the study at the learning rates that validation chose, as `model.run` takes them."""
    import analysis  # noqa: PLC0415
    from analysis.architectures import DOCUMENTS, LANGUAGE  # noqa: PLC0415

    try:
        runs = analysis.load(asked.runs, study=asked.study)
    except (analysis.BrokenRecordError, analysis.NoRecordsError) as error:
        _say(str(error), Console(stderr=True))
        return 2
    trained = runs.loc[~runs["task.name"].isin(DOCUMENTS)]
    language = set(trained["task.name"]) == {LANGUAGE}
    chosen = analysis.at_best_learning_rate(trained, chosen_by="validation_loss" if language else "validation_accuracy")
    _say(",".join(chosen["identity"]))
    return 0


def import_(asked: argparse.Namespace) -> int:
    """Take the records of a Parquet file into the runs, so that none of them runs again. What has a record keeps it."""
    import analysis  # noqa: PLC0415
    from sweeps.settings_of_today import with_settings_of_today  # noqa: PLC0415 - torch, for this command alone

    try:
        found = [with_settings_of_today(record) for record in analysis.as_records(analysis.load(asked.file))]
        return _take(found, asked.runs)
    except (analysis.BrokenRecordError, analysis.NoRecordsError, DiskTrouble) as error:
        _say(str(error), Console(stderr=True))
        return 2


def _take(found: Sequence[dict[str, Any]], runs: Path) -> int:
    studies: dict[str, list[str]] = {}
    new = 0
    for record in found:
        directory = RunDirectory(runs, record["identity"])
        with writing(directory.path):
            directory.path.mkdir(parents=True, exist_ok=True)
        new += write_once(directory.record_path, json.dumps(record))
        if record["study"]:
            studies.setdefault(record["study"], []).append(record["identity"])
    for study, identities in studies.items():
        write_study(runs, study, identities)
    _say(f"{new} of {len(found)} runs are new in {runs}")
    return 0


def _survey(asked: argparse.Namespace) -> Survey:
    return survey(asked.runs, asked.study, study_identities(asked.runs, asked.study))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sweeps", description="See and steer a study, wherever it runs.")
    commands = parser.add_subparsers(required=True)
    parsers = {}
    for command in (status, retry, cancel, export, best, import_):
        said = (command.__doc__ or "").partition(".")[0]
        parsers[command] = own = commands.add_parser(
            command.__name__.rstrip("_"), help=said[0].lower() + said[1:], description=said
        )
        own.set_defaults(command=command)
        if command is import_:
            own.add_argument("file", type=Path, help="as export writes it")
        else:
            own.add_argument("study", help="the study's name")
        own.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of run records, by default runs/")
    parsers[status].add_argument("--watch", action="store_true", help="go on until nothing runs or waits")
    parsers[retry].add_argument("overrides", nargs="*", help="settings for this launch, as SETTING=VALUE")
    parsers[export].add_argument("--out", type=Path, help="by default STUDY.parquet")
    return parser.parse_args()


def _say(sentence: str, console: Console | None = None) -> None:
    (console or Console()).print(sentence, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
