"""`python -m recallbench.benchmark`: the time of a training step, and of an epoch, beside zoology's and Based's own.

A step is measured as training takes it: the median of three passes over 40 batches of 256, after the first step, which
compiles. Times are a member's share of a step of four members in lockstep.
On a CPU, to try it, two batches of a small case.
"""

import argparse
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from recallbench.benchmark_file import BenchmarkFile
from recallbench.execute import choose_device
from recallbench.run import resolve
from recallbench.train import Training

RATES = (1e-3, 10**-2.5, 1e-2, 10**-1.5)
"""A member each: the learning rates of the Based paper's Figure 2."""

BATCHES = 40
"""Batches a pass."""

SEGMENTS = {(64, 4): 100_000, (128, 8): 20_000, (256, 16): 20_000, (256, 32): 20_000, (256, 64): 20_000}
"""The published training mix: (sequence length, key-value pairs) -> examples."""


class Case(NamedTuple):
    """What is measured: one mixer under study at one width and, unless it is an epoch of the mix, one shape."""

    mixer: str
    settings: dict[str, Any]
    d_model: int
    shape: tuple[int, int] | None  # (sequence length, key-value pairs), None for an epoch of the mix
    zoology: float | None  # milliseconds a step, or seconds an epoch; commit dbcb60d with its own trainer on an H100


BASED = {"feature_map": "taylor", "feature_dim": 16}
CASES = [
    Case("linear_attention", BASED, 128, (256, 64), 25.2),
    Case("linear_attention", BASED, 64, (256, 64), 21.5),
    Case("attention", {}, 128, (256, 64), 22.4),
    Case("attention", {}, 64, (256, 64), 17.4),
    Case("sliding_window", {"window_size": 32}, 128, (256, 64), 24.8),
    Case("hyena", {}, 128, (256, 64), None),
    Case("h3", {}, 128, (256, 64), None),
    Case("mamba", {"d_state": 16}, 128, (256, 64), None),
    Case("mamba2", {"d_state": 16}, 128, (256, 64), None),
    Case("linear_attention", BASED, 128, (64, 4), None),
    Case("linear_attention", BASED, 64, (64, 4), None),
    Case("attention", {}, 128, (64, 4), None),
    Case("attention", {}, 64, (64, 4), 5.9),
    Case("linear_attention", BASED, 64, None, 11.0),
    Case("attention", {}, 64, None, 8.0),
]
TRIAL = [Case("linear_attention", BASED, 16, (32, 2), None)]
"""For a CPU: that it runs."""


def measure(case: Case, device: torch.device, precision: str, batches: int = BATCHES) -> dict[str, Any]:
    """One row: milliseconds a member-step, or seconds a member-epoch, and what the first one took to compile."""
    mix = case.shape is None
    segments = SEGMENTS if case.shape is None else {case.shape: (batches + 1) * 256}
    train = _training(case, segments, device, precision)
    if mix:
        first, again = (_seconds(train, lambda epoch=epoch: _epoch(train, epoch)) for epoch in range(2))
        share = again / len(RATES)
    else:
        order = [rows for _, rows in train.order(0)]
        first = _seconds(train, lambda: train.train_step(0, order[0]))
        passes = [_seconds(train, lambda: [train.train_step(0, rows) for rows in order[1:]]) for _ in range(3)]
        share = 1000 * statistics.median(passes) / batches / len(RATES)
    N, pairs = case.shape or (None, None)
    return {
        "mixer": case.mixer,
        "settings": " ".join(f"{key}={value}" for key, value in case.settings.items()),
        "d_model": case.d_model,
        "measured": "epoch, s" if mix else "step, ms",
        "sequence_length": N,
        "num_kv_pairs": pairs,
        "members": len(RATES),
        "precision": precision,
        "value": share,
        "zoology": case.zoology,
        "speedup": None if case.zoology is None else case.zoology / share,
        "first_seconds": first,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def _training(case: Case, segments: dict[tuple[int, int], int], device: torch.device, precision: str) -> Training:
    torch.compiler.reset()
    train = [{"sequence_length": N, "num_kv_pairs": k, "num_examples": n} for (N, k), n in segments.items()]
    test = [{**segment, "num_examples": 1000} for segment in train]
    settings = {
        "task": {"name": "mqar", "train": train, "test": test},
        "model": {"d_model": case.d_model, "layers": ["short_conv", "mixer"]},
        "mixer": {"name": case.mixer, **case.settings},
        "seed": 0,
    }
    fixed = {"batch_size": 256, "precision": precision, "stop_at_accuracy": None}
    runs = [resolve({**settings, "train": {**fixed, "learning_rate": rate}}) for rate in RATES]
    training = Training(runs, device)
    training.set_rates(0)
    return training


def _epoch(training: Training, epoch: int) -> None:
    for segment, rows in training.order(epoch):
        training.train_step(segment, rows)
    training.end_epoch(epoch, lambda run, log: None)


def _seconds(training: Training, call: Any) -> float:
    if training.device.type == "cuda":
        torch.cuda.synchronize(training.device)
    started = time.perf_counter()
    call()
    if training.device.type == "cuda":
        torch.cuda.synchronize(training.device)
    return time.perf_counter() - started


def table(rows: pd.DataFrame) -> Table:
    """For the terminal: each time, how many times sooner than zoology's, and in units of Based's at the same shape."""
    shown = Table("mixer", "settings", "D", "N", "pairs", "measured", "value", "zoology / value", "value / Based's")
    for row in rows.to_dict("records"):
        N, pairs = ("mix", "") if pd.isna(row["sequence_length"]) else map(str, _shape(row))
        cells = [row["mixer"], row["settings"], str(row["d_model"]), N, pairs, row["measured"], f"{row['value']:.3f}"]
        shown.add_row(*cells, *("" if pd.isna(r) else f"{r:.1f}" for r in (row["speedup"], row["over_based"])))
    return shown


def _shape(row: dict[str, Any]) -> Iterator[int]:
    return (int(row[key]) for key in ("sequence_length", "num_kv_pairs"))


def over_based(rows: pd.DataFrame) -> pd.Series:
    """Each value in units of Based's (Taylor linear attention) of the same width, shape and measure."""
    same = ["d_model", "measured", "sequence_length", "num_kv_pairs"]
    keys = [tuple(str(row[key]) for key in same) for row in rows.to_dict("records")]  # as text: no NaN equals another
    values, mixers = rows["value"].tolist(), rows["mixer"].tolist()
    based = {key: value for key, value, mixer in zip(keys, values, mixers, strict=True) if mixer == "linear_attention"}
    return pd.Series([value / based.get(key, math.nan) for key, value in zip(keys, values, strict=True)], rows.index)


def main() -> None:
    """Measure every case, print the table, and with `--out` keep it, each case at once."""
    parser = argparse.ArgumentParser(prog="python -m recallbench.benchmark", description=__doc__)
    parser.add_argument("--out", type=Path, help="a Parquet file to write")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = choose_device(options.device)
    console = Console()
    cases, batches = (CASES, BATCHES) if device.type == "cuda" else (TRIAL, 2)
    file, measured = BenchmarkFile(options.out, device, len(RATES)), []
    try:
        for case in track(cases, "cases", console=console):
            measured.append(measure(case, device, options.precision, batches))
            file.keep(_compared(measured))
        file.finish()
    finally:
        if measured:
            console.print(table(_compared(measured)))


def _compared(measured: list[dict[str, Any]]) -> pd.DataFrame:
    rows = pd.DataFrame(measured)
    return rows.assign(over_based=over_based(rows))


if __name__ == "__main__":
    main()
