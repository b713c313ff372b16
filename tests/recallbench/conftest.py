"""A run that trains in a blink, and the ways to carry it out and to compare what comes of it."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recallbench.execute import execute
from recallbench.execution import ExecutionConfig
from recallbench.interrupt import StopRequest
from recallbench.run import Run, resolve

TINY = {
    "task": {
        "name": "mqar",
        "vocab_size": 16,
        "sequence_length": 8,
        "num_kv_pairs": 2,
        "num_examples": 32,
        "num_test_examples": 16,
    },
    "model": {"d_model": 8, "layers": ["short_conv", "mixer"]},
    "mixer": {"name": "attention"},
    "train": {"learning_rate": 0.01, "batch_size": 8, "epochs": 3},
    "seed": 0,
    "members": [],
    "decode": {"state_dtype": None},
}
"""Three epochs of four steps."""

Record = dict[str, Any]


@pytest.fixture(autouse=True)
def one_thread():
    """Sums run in one order, and tests share two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def float64():
    """Models train in float64, which leaves only the order of summation between two ways to the same result."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., dict[str, Any]]:
    """The tiny configuration with changes by dotted name; a group given whole replaces the group."""

    def configuration(changes: dict[str, Any] | None = None) -> dict[str, Any]:
        config = copy.deepcopy(TINY)
        for name, value in (changes or {}).items():
            part, *rest = name.split(".")
            if rest:
                config[part][rest[0]] = value
            else:
                config[part] = value
        return config

    return configuration


@pytest.fixture(scope="session")
def run(tiny) -> Callable[..., Run]:
    """The tiny run with changes by dotted name."""
    return lambda changes=None: resolve(tiny(changes))


@pytest.fixture(scope="session")
def members(run) -> Callable[..., list[Run]]:
    """Tiny runs that differ in (learning rate, seed) alone."""

    def several(pairs, changes=None):
        return [run({**(changes or {}), "train.learning_rate": rate, "seed": seed}) for rate, seed in pairs]

    return several


@pytest.fixture(scope="session")
def carry_out() -> Callable[..., list[Record]]:
    """Execute runs of one group in a folder; their records with their logs, None for those without."""

    def carried_out(folder: Path, runs: list[Run], stop: StopRequest | None = None, **execution: Any):
        execute(runs, ExecutionConfig(runs=str(folder), device="cpu", **execution), stop or StopRequest())
        return [read(folder / run.identity) for run in runs]

    return carried_out


def read(directory: Path) -> Record:
    """A record, with its log under `log`."""
    record = json.loads((directory / "result.json").read_text(), parse_constant=pytest.fail)
    log = directory / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return {**record, "log": [json.loads(line) for line in lines]}


@pytest.fixture(scope="session")
def outcome() -> Callable[[Record], Record]:
    """What a record says of the result: all but the times, the memory, the provenance and the name of the study."""

    def told(record: Record) -> Record:
        own = {key: value for key, value in record.items() if key not in ("provenance", "study")}
        cost = {k: v for k, v in record.get("cost", {}).items() if k not in ("seconds", "peak_memory_bytes")}
        log = [{key: value for key, value in entry.items() if key != "seconds"} for entry in record["log"]]
        return {**own, "cost": cost, "log": log}

    return told


@pytest.fixture(scope="session")
def numbers() -> Callable[..., dict[str, float]]:
    """Every number of nested dictionaries and lists by its dotted name, so that `pytest.approx` compares them all."""

    def flat(tree: Any, prefix: str = "") -> dict[str, float]:
        if isinstance(tree, dict):
            tree = tree.items()
        elif isinstance(tree, list):
            tree = enumerate(tree)
        else:
            return {prefix: tree} if isinstance(tree, int | float) else {}
        return {k: v for key, value in tree for k, v in flat(value, f"{prefix}.{key}").items()}

    return flat
