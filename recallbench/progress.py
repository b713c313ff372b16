"""The study seen from outside: a bar with the time left, and a line for each run that ends.

It watches run directories rather than training loops, so it serves runs in this process as well as any elsewhere.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from recallbench.record import RunDirectory

PERIOD = 0.5
"""Seconds between two looks."""

STYLES = {"completed": "green", "diverged": "yellow", "out_of_memory": "yellow", "failed": "red"}

COUNTED = (("epoch", "epochs"), ("step", "steps"), ("prompt", "prompts"))
"""How far a run is, and how far it goes, in a line of its log."""

HEADLINES = {
    "accuracy": "accuracy {:.3f}",
    "perplexity": "perplexity {:.2f}",
    "ar_perplexity": "on AR hits {:.2f}",
    "tokens_per_second": "{:,.0f} tokens/s",
}
"""How a metric is told, of those that a line has room for."""


@contextmanager
def watch(waiting: Mapping[str, RunDirectory], console: Console, title: str) -> Iterator[None]:
    """Follow runs, label -> directory, until the block ends."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    left = dict(waiting)
    before = {label: _written(directory) for label, directory in waiting.items()}  # a rerun starts with a record
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(title, total=len(waiting))

        def look() -> None:
            for label in [label for label, d in left.items() if _written(d) not in (None, before[label])]:
                progress.console.print(describe(left.pop(label).record(), label), highlight=False, soft_wrap=True)
            done = len(waiting) - len(left)
            progress.update(bar, completed=done + sum(_share(d) for d in left.values()))

        over = threading.Event()

        def keep_looking() -> None:
            took = 0.0
            while not over.wait(max(PERIOD, 10 * took)):  # a thousand runs on a slow disk are looked at less often
                began = time.monotonic()
                look()
                took = time.monotonic() - began

        thread = threading.Thread(target=keep_looking, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            look()


def describe(record: Mapping[str, Any], label: str) -> str:
    """One line of rich markup: how a run ended, its accuracy or speed, its state, and which run it was."""
    status = record["status"]
    metrics, state = record.get("metrics"), record.get("state")
    parts = [f"[{STYLES[status]}]{status.replace('_', ' ')}[/]"]
    if metrics:
        parts += [told.format(metrics[name]) for name, told in HEADLINES.items() if metrics.get(name) is not None]
    if state:
        parts.append(f"state {readable_bytes(state['bytes'])}")
    if record["reason"]:
        parts.append(_escape(record["reason"]))
    return "  ".join([*parts, f"[dim]{_escape(label)}[/]"])


def readable_bytes(count: int) -> str:
    """1536 -> 1.5 KiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def _written(directory: RunDirectory) -> int | None:
    """When the record was written, if there is one."""
    try:
        return directory.record_path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _share(directory: RunDirectory) -> float:
    """How much of a run is done, by its log: 0 before its first line."""
    try:
        last = json.loads(directory.log_path.read_text().splitlines()[-1])
    except (OSError, IndexError):
        return 0.0
    done, of = next(names for names in COUNTED if names[0] in last)
    return min(last[done] / last[of], 0.99)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
