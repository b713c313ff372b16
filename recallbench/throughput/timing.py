"""How long calls take, one by one, and how that spreads."""

import itertools
import time
from collections.abc import Callable, Sequence

import torch


def durations(call: Callable[[], None], count: int, device: torch.device) -> list[float]:
    """Seconds that each of `count` calls in a row takes; on a GPU by its own clock, with no wait between them."""
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for _ in range(count):
            call()
            marks.append(time.perf_counter())
        return [after - before for before, after in itertools.pairwise(marks)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize(device)
    return [before.elapsed_time(after) / 1000 for before, after in itertools.pairwise(events)]


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """The median, the 95th and 99th percentile, the least and the most."""
    points = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "min": 0.0, "max": 1.0}
    values = torch.tensor(seconds, dtype=torch.float64).quantile(torch.tensor([*points.values()], dtype=torch.float64))
    return {f"seconds_{name}": value for name, value in zip(points, values.tolist(), strict=True)}
