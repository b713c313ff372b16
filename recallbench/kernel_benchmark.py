"""`python -m recallbench.kernel_benchmark`: the kernels beside the best of others and beside what memory allows.

Times are those of replayed CUDA graphs, the median of many, without the time that Python takes to ask; on a CPU, to
try it, of calls. Heads are those of the Based paper: H = 16, K = 16, V = 64, and a window of W = 64 positions.
"""

import argparse
import importlib.util
import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import pandas as pd
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels.attention import masked_attention
from kernels.linear_attention import LinearAttentionState
from kernels.sliding_window_triton import fused_window_step
from kernels.taylor_attention import taylor_attention, taylor_attention_step
from kernels.taylor_features import features
from recallbench.device import choose_device
from recallbench.provenance import provenance
from recallbench.throughput.machine import rates
from recallbench.throughput.timing import durations

H, K, V, W = 16, 16, 64, 64

Call = Callable[[], Any]


class Case(NamedTuple):
    """What is measured at one shape; N is of no account to a step."""

    kernel: Literal["prefill", "training", "step", "window step"]
    B: int
    N: int = 1
    state: torch.dtype = torch.float32


PREFILLS = [(1, 2048), (1, 8192), (1, 16384), (4, 2048), (4, 8192), (4, 16384), (16, 1024), (16, 2048)]
CASES = [
    *(Case("prefill", B, N) for B, N in PREFILLS),
    *(Case("training", 4, N) for N in (2048, 4096, 8192)),
    *(Case("step", B, state=dtype) for dtype in (torch.float32, torch.bfloat16) for B in (1, 8, 128, 512)),
    *(Case("window step", B, state=torch.bfloat16) for B in (1, 128, 512)),
]
TRIAL = [Case("prefill", 1, 100), Case("training", 1, 100), Case("step", 2), Case("window step", 2)]
"""For a CPU: that it runs."""


def ways(case: Case, device: torch.device) -> Iterator[tuple[str, Call]]:
    """Every implementation at hand, by name: ours, the reference, and those of others on a GPU."""
    gpu = device.type == "cuda"
    dtype = torch.bfloat16 if gpu else torch.float32
    if case.kernel == "step":
        yield from _steps(case, dtype, device)
        return
    if case.kernel == "window step":
        yield from _window_steps(case, dtype, device)
        return
    backward = case.kernel == "training"
    q, k, v = (_random(case.B, case.N, H, width, dtype=dtype, device=device) for width in (K, K, V))
    if gpu:
        yield "ours", _taken(lambda *t: taylor_attention(*t, backend="triton")[0], _by_head(q, k, v), backward)
    yield "reference", _taken(lambda *t: taylor_attention(*t, backend="reference")[0], _by_head(q, k, v), backward)
    if not gpu:
        return
    wide = tuple(_random(case.B, H, case.N, V, dtype=dtype, device=device) for _ in range(3))
    for name, backend in (
        ("FlashAttention-2", SDPBackend.FLASH_ATTENTION),
        ("cuDNN attention", SDPBackend.CUDNN_ATTENTION),
    ):
        yield name, _taken(_attention(backend), wide, backward)
    if importlib.util.find_spec("fla"):
        from fla.ops.based import fused_chunk_based, parallel_based  # noqa: PLC0415 - an extra

        yield "fla parallel_based", _taken(parallel_based, (q, k, v), backward)
        if not backward:
            yield "fla fused_chunk_based", _taken(fused_chunk_based, (q, k, v), backward)


def _steps(case: Case, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Call]]:
    q, k, v = (_random(case.B, H, width, dtype=dtype, device=device) for width in (K, K, V))
    count = len(features(K).weight)
    S = _random(case.B, H, count, V, dtype=torch.float32, device=device)
    state = LinearAttentionState(S.to(case.state), torch.ones(case.B, H, count, dtype=case.state, device=device))
    if device.type == "cuda":
        yield "ours", lambda: taylor_attention_step(q, k, v, state, backend="triton")
    yield "reference", lambda: taylor_attention_step(q, k, v, state, backend="reference")


def _window_steps(case: Case, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Call]]:
    q, k, v = (_random(case.B, H, V, dtype=dtype, device=device) for _ in range(3))
    ring_k, ring_v = (_random(case.B, W, H, V, dtype=dtype, device=device) for _ in range(2))
    length = torch.full((case.B,), W, dtype=torch.int64, device=device)
    if device.type == "cuda":
        yield "ours", lambda: fused_window_step(q, k, v, ring_k, ring_v, length)
    visible = torch.ones(case.B, 1, 1, W, dtype=torch.bool, device=device)
    keys, values = _by_head(ring_k, ring_v)
    yield "attention over the ring alone", lambda: masked_attention(q.unsqueeze(2), keys, values, visible)


def floor_bytes(case: Case) -> int:
    """What must pass through memory: inputs, outputs and the state, each once; gradients and their inputs, too."""
    item, tokens = 2, case.B * case.N * H
    if case.kernel == "prefill":
        return tokens * (2 * K + 2 * V) * item
    if case.kernel == "training":  # and then q, k, v, y and dy are read, dq, dk and dv written
        return tokens * (2 * K + 2 * V + 4 * K + 4 * V) * item
    if case.kernel == "step":
        return case.B * H * (2 * len(features(K).weight) * (V + 1) * case.state.itemsize + (2 * K + 2 * V) * item)
    return case.B * H * (2 * W * V + 6 * V) * item


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
            "state": str(case.state).removeprefix("torch.") if "step" in case.kernel else "",
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


def _taken(attend: Callable[..., Any], inputs: tuple[Tensor, ...], backward: bool) -> Call:
    """Outputs alone, or with all gradients."""
    if not backward:
        return lambda: attend(*inputs)
    leaves = [t.detach().requires_grad_() for t in inputs]

    def both() -> None:
        y = attend(*leaves)
        torch.autograd.grad(y, leaves, torch.ones_like(y))

    return both


def _attention(backend: SDPBackend) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return attend


def _by_head(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.transpose(1, 2) for t in tensors)


def _random(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


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
    """Measure every case, print the table, and with `--out` keep it."""
    parser = argparse.ArgumentParser(prog="python -m recallbench.kernel_benchmark", description=__doc__)
    parser.add_argument("--out", type=Path, help="a Parquet file to write")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = choose_device(options.device)
    console = Console()
    cases = CASES if device.type == "cuda" else TRIAL
    rows = pd.DataFrame([row for case in track(cases, "cases", console=console) for row in measure(case, device)])
    console.print(table(rows))
    if options.out is not None:
        made = provenance(device, 1)
        rows = rows.assign(
            device=made["device"], code_version=made["code_version"], time=made["time"], **made["packages"]
        )
        options.out.parent.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(options.out)


if __name__ == "__main__":
    main()
