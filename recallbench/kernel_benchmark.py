"""`python -m recallbench.kernel_benchmark`: the kernels beside the best of others and beside what memory allows.

Times are those of replayed CUDA graphs, the median of many, without the time that Python takes to ask; on a CPU, to
try it, of calls. What is measured is in `recallbench/kernel_cases.py`.
"""

import argparse
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_args

import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from recallbench.benchmark_file import BenchmarkFile
from recallbench.device import choose_device
from recallbench.kernel_cases import CASES, TRIAL, Call, Case, Kernel, floor_bytes, ways
from recallbench.throughput.machine import rates
from recallbench.throughput.timing import durations


def measure(case: Case, device: torch.device) -> Iterator[dict[str, Any]]:
    """A row for each implementation: milliseconds, the floor, and the part of it that is reached."""
    floor = 1000 * floor_bytes(case) / rates(device, torch.bfloat16).bytes_per_second
    for name, call in ways(case, device):
        spent, trouble = math.nan, ""
        try:
            spent = _milliseconds(call, device)
        except Exception as error:  # of others' kernels on this device; the table says so
            trouble = f"{type(error).__name__}: {error}".splitlines()[0]
        yield {
            "kernel": case.kernel,
            "B": case.B,
            "N": case.N,
            "state": str(case.state).removeprefix("torch.") if case.kernel.endswith("step") else "",
            "implementation": name,
            "milliseconds": spent,
            "floor": floor,
            "fraction": floor / spent,
            "error": trouble,
        }


def _milliseconds(call: Call, device: torch.device) -> float:
    if device.type == "cuda":
        from triton.testing import do_bench_cudagraph  # noqa: PLC0415

        call()  # compiles
        return cast("float", do_bench_cudagraph(call, rep=100, return_mode="median"))
    return 1000 * statistics.median(durations(call, 5, device))


def table(rows: pd.DataFrame) -> Table:
    """For the terminal: a row an implementation, with how many times longer than ours it takes."""
    shown = Table("kernel", "B", "N", "state", "implementation", "ms", "of its floor", "times ours")
    for _, case in rows.groupby(["kernel", "B", "N", "state"], sort=False):
        ours = case.loc[case["implementation"] == "ours", "milliseconds"]
        for row in case.to_dict("records"):
            cells = [row["kernel"], str(row["B"]), str(row["N"]), row["state"], row["implementation"]]
            ratio = f"{row['milliseconds'] / ours.iloc[0]:.2f}" if len(ours) else ""
            spent = row["error"] or f"{row['milliseconds']:.4f}"
            shown.add_row(*cells, spent, f"{row['fraction']:.2f}", ratio)
    return shown


def main() -> None:
    """Measure every case, or those of some kernels, print the table, and with `--out` keep it, each case at once."""
    parser = argparse.ArgumentParser(prog="python -m recallbench.kernel_benchmark", description=__doc__)
    parser.add_argument("kernels", nargs="*", help=f"some of {', '.join(get_args(Kernel))}; by default all")
    parser.add_argument("--out", type=Path, help="a Parquet file to write")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    if unknown := set(options.kernels) - set(get_args(Kernel)):
        parser.error(f"{', '.join(sorted(unknown))}: there is no such kernel, but {', '.join(get_args(Kernel))}")
    device = choose_device(options.device)
    console = Console()
    wanted = options.kernels or get_args(Kernel)
    cases = [case for case in (CASES if device.type == "cuda" else TRIAL) if case.kernel in wanted]
    file, rows = BenchmarkFile(options.out, device), []
    try:
        for case in track(cases, "cases", console=console):
            rows += measure(case, device)
            file.keep(rows)
        file.finish()
    finally:
        if rows:
            console.print(table(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
