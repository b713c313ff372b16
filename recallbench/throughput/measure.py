"""One measurement: warm up, several passes, and every figure beside its floor."""

import dataclasses
import gc
import math
import time
from typing import Any

import torch

from kernels.backend import using
from models import build_model
from recallbench.interrupt import Stopped, StopRequest
from recallbench.memory import out_of_memory, peak_memory
from recallbench.provenance import provenance
from recallbench.state import measure_state
from recallbench.throughput.decode import Decoder
from recallbench.throughput.floor import Model, floor, weight_bytes
from recallbench.throughput.largest import largest, near
from recallbench.throughput.machine import rates
from recallbench.throughput.measurement import Measurement
from recallbench.throughput.nvml import LEAST, Gpu
from recallbench.throughput.prefill import Prefill
from recallbench.throughput.timing import durations, spread

WARM_UP = 2.0
"""Seconds."""


def measure(run: Measurement, device: torch.device, stop: StopRequest) -> dict[str, Any]:
    """What the record says beside the settings.

    **Raises** `Stopped` between two passes once `stop` is made, and what torch raises where memory does not suffice.
    """
    with torch.no_grad(), using(run.throughput.backend):
        return _measure(run, device, stop)


def _measure(run: Measurement, device: torch.device, stop: StopRequest) -> dict[str, Any]:
    began = time.monotonic()
    torch.manual_seed(0)
    with device:
        model = build_model(run.model).to(device, run.dtype).eval().requires_grad_(False)
    batch_size = _batch_size(run, model, stop)
    can = rates(device, run.dtype)
    least = floor(run, model, batch_size)
    state = measure_state(model, run.length, run.state_dtype)
    _free(device)
    work = workload(run, model, batch_size)
    work.restart()
    _warm_up(work, device)
    gpu = Gpu(device)
    seconds: list[float] = []
    joules = 0.0
    for _ in range(run.throughput.passes):
        if stop.made:
            raise Stopped
        work.restart()
        before = gpu.joules()
        seconds += durations(work.step, work.steps, device)
        joules += gpu.joules() - before
    clock_mhz, throttled, peak = gpu.clock_mhz(), gpu.throttled(), peak_memory(device)
    tokens = len(seconds) * work.tokens
    timed = spread(seconds)
    floor_seconds = least.seconds(can)
    return {
        "metrics": {
            "tokens_per_second": work.tokens / timed["seconds_p50"],
            **timed,
            "batch_size": batch_size,
            "cuda_graph": work.in_graph,
            "floor_seconds": floor_seconds,
            "floor_fraction": floor_seconds / timed["seconds_p50"],
            "bytes_moved": least.bytes,
            "flops": least.flops,
            "bandwidth_bytes_per_second": can.bytes_per_second,
            "matmul_flops_per_second": can.flops_per_second,
            "weight_bytes": weight_bytes(model),
            "energy_joules_per_token": joules / tokens if sum(seconds) >= LEAST and not math.isnan(joules) else None,
            "clock_mhz": clock_mhz,
            "throttled": throttled,
        },
        "slices": None,
        "state": state,
        "cost": {
            "seconds": time.monotonic() - began,
            "tokens": tokens,
            "parameters": sum(p.numel() for p in model.parameters()),
            "peak_memory_bytes": peak,
        },
        "provenance": provenance(device, 1),
    }


def workload(run: Measurement, model: Model, batch_size: int) -> Prefill | Decoder:
    """What is timed."""
    how = run.throughput
    if how.kind == "prefill":
        return Prefill(model, batch_size, how.prompt_length, run.state_dtype, how.cuda_graph)
    return Decoder(model, batch_size, how.prompt_length, how.generate, run.state_dtype, how.temperature, how.cuda_graph)


def _batch_size(run: Measurement, model: Model, stop: StopRequest) -> int:
    """Rows of a batch. The largest is searched for by steps as written, since a graph compiles them anew for each."""
    if run.throughput.batch_size != "largest":
        return int(run.throughput.batch_size)
    as_written = dataclasses.replace(run, throughput=run.throughput.model_copy(update={"cuda_graph": False}))
    guess = largest(lambda B: _fits(as_written, model, B, stop))
    found = near(guess, lambda B: _fits(run, model, B, stop))
    if not found:
        raise torch.OutOfMemoryError("not even one sequence fits")
    return found


def _fits(run: Measurement, model: Model, batch_size: int, stop: StopRequest) -> bool:
    """Whether a step of so many rows fits into the memory of the GPU."""
    if stop.made:
        raise Stopped
    _free(next(model.parameters()).device)
    try:
        work = workload(run, model, batch_size)
        work.restart()
        durations(work.step, 1, next(model.parameters()).device)
    except Exception as error:
        if not out_of_memory(error):
            raise
        return False
    return True


def _warm_up(work: Prefill | Decoder, device: torch.device) -> None:
    """Compile, and bring the clock up: a pass, or as much of it as `WARM_UP` allows for."""
    began = time.monotonic()
    for _ in range(work.steps):
        durations(work.step, 1, device)
        if time.monotonic() - began > WARM_UP:
            return


def _free(device: torch.device) -> None:
    """Give back what is not in use any more, and count the most that is in use from here on."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
