"""Synthetic run records in the shape that recallbench writes."""

import hashlib
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Record = dict[str, Any]
KV_PAIRS = (2, 4, 8, 16)


def make_record(
    mixer: str = "based",
    accuracy: float | None = 0.9,
    *,
    study: str = "quick",
    status: str = "completed",
    seed: int = 0,
    learning_rate: float = 1e-3,
    state_bytes: int = 4096,
    validation: float | None = None,
    slices: dict[int, float] | None = None,
    family: str | None = None,
    **settings: Any,
) -> Record:
    """One record; `settings` are the mixer's, `slices` the accuracy at each number of kv pairs."""
    config = {
        "task.name": "mqar",
        "task.vocab_size": 8192,
        "task.train": [[64, 4, 100_000], [128, 8, 20_000]],
        "model.d_model": 64,
        "model.layers": ["short_conv", {"name": mixer, **settings}],
        "mixer.name": mixer,
        **{f"mixer.{name}": value for name, value in settings.items()},
        "train.learning_rate": learning_rate,
        "train.epochs": 16,
        "seed": seed,
    }
    completed = status == "completed" and accuracy is not None
    if completed and slices is None:
        slices = dict.fromkeys(KV_PAIRS, accuracy)
    return {
        "identity": hashlib.sha256(json.dumps(config).encode()).hexdigest()[:16],
        "study": study,
        "status": status,
        "reason": None if completed else f"the run {status}",
        "family": family or mixer,
        "config": config,
        "metrics": {
            "accuracy": accuracy,
            "loss": 0.05,
            "validation_accuracy": accuracy if validation is None else validation,
            "validation_loss": 0.05,
        }
        if completed
        else None,
        "slices": [
            {
                "sequence_length": 64,
                "num_kv_pairs": pairs,
                "accuracy": a,
                "loss": 0.1,
                "examples": 1000,
            }
            for pairs, a in (slices or {}).items()
        ],
        "state": {
            "length": 64,
            "dtype": "float32",
            "elements": state_bytes // 4,
            "bytes": state_bytes,
            "layers": [
                {"mixer": "short_conv", "elements": 128, "bytes": 512},
                {"mixer": mixer, "elements": state_bytes // 4 - 128, "bytes": state_bytes - 512},
            ],
        },
        "cost": {
            "seconds": 12.5,
            "steps": 1000,
            "tokens": 64_000,
            "parameters": 600_000,
            "peak_memory_bytes": None,
        },
        "provenance": {
            "code_version": "abc123",
            "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
            "device": "NVIDIA H100",
            "host": "node1",
            "time": "2026-01-01T00:00:00+00:00",
        },
    }


def architectures() -> list[tuple[str, dict[str, Any], int, float]]:
    """The points of a study like the default one: mixer, settings, bytes of state, capacity."""
    d = 64
    found: list[tuple[str, dict[str, Any], int, float]] = [("attention", {}, 4 * 2 * 64 * d, 64.0)]
    for window in (4, 8, 16, 32, 64):
        state = 4 * 2 * window * d
        found.append(("sliding_window", {"window_size": window}, state, 0.35 * window))
    for feature_map, dims in (("taylor", (8, 16)), ("elu", (8, 16)), ("relu", (8, 16))):
        for k in dims:
            features = 1 + k + k * (k + 1) // 2 if feature_map == "taylor" else k
            capacity = features * {"taylor": 0.12, "elu": 0.2, "relu": 0.3}[feature_map]
            settings = {"feature_map": feature_map, "feature_dim": k}
            found.append(("linear_attention", settings, 4 * features * (d + 1), capacity))
    for k in (4, 8, 16):
        for window in (8, 16):
            features = 1 + k + k * (k + 1) // 2
            state = 4 * (features * (d + 1) + 2 * window * d)
            capacity = 0.14 * features + 0.4 * window
            found.append(("based", {"feature_dim": k, "window_size": window}, state, capacity))
    return found


def make_study(seeds: int = 1) -> list[Record]:
    """Every architecture at two learning rates; the higher is better for small states."""
    records = []
    for mixer, settings, state_bytes, capacity in architectures():
        for rate in (1e-3, 3e-3):
            for seed in range(seeds):
                reach = capacity * (1.15 if rate == 3e-3 else 1.0) * (1 + 0.12 * math.sin(9 * seed))
                curve = {n: 1 / (1 + (n / reach) ** 1.6) for n in KV_PAIRS}
                records.append(
                    make_record(
                        mixer,
                        sum(curve.values()) / len(curve),
                        slices=curve,
                        learning_rate=rate,
                        seed=seed,
                        state_bytes=state_bytes + 512,
                        **settings,
                    )
                )
    return records


def make_records_for(figure: str, seeds: int = 1) -> list[Record]:
    """Records that support a figure: some study, or what else it takes."""
    records = make_study(seeds)
    if figure == "accuracy_by_sequence_length":
        for record in records:
            for part in record["slices"]:
                part["sequence_length"] = 32 * part["num_kv_pairs"]
    elif figure == "accuracy_by_state_dtype":
        loss = {None: (4, 0.0), "bfloat16": (2, 0.01), "float8_e4m3fn": (1, 0.1), "float8_e5m2": (1, 0.2)}
        decoded = [(_copy(record), dtype) for record in records for dtype in loss]
        for record, dtype in decoded:
            size, lost = loss[dtype]
            record["config"]["decode.state_dtype"] = dtype
            record["state"].update(dtype=dtype or "float32", bytes=record["state"]["elements"] * size)
            record["metrics"]["accuracy"] *= 1 - lost
        records = [_named(record) for record, _ in decoded]
    elif figure == "feature_maps":
        for record in [r for r in records if r["config"].get("mixer.feature_map") in ("elu", "relu")]:
            wide = _copy(record)
            wide["config"]["mixer.feature_dim"] = wide["config"]["model.d_model"] = (
                8 * record["config"]["mixer.feature_dim"]
            )
            wide["state"]["bytes"] *= 8
            records.append(_named(wide))
            if record["config"]["mixer.feature_map"] == "relu":
                position = _copy(wide)
                position["family"] = position["config"]["mixer.name"] = "cosformer"
                del position["config"]["mixer.feature_map"]
                position["state"]["bytes"] *= 2
                records.append(_named(position))
    elif figure == "perplexity_by_state":
        for record in records:
            hit = 2 + 8 * (1 - record["metrics"]["accuracy"])
            record["config"]["task.name"] = "lm"
            record["metrics"].update(perplexity=(hit + 20) / 2, ar_perplexity=hit, other_perplexity=19 + hit / 10)
    elif figure == "real_recall_by_state":
        records = [_copy(record) for record in records for _ in range(3)]
        for i, record in enumerate(records):
            record["config"]["task.name"] = ("swde", "fda", "squad_completion")[i % 3]
            record["metrics"]["accuracy"] *= (0.9, 0.5, 0.3)[i % 3]
            _named(record)
    elif figure in ("throughput_by_batch", "throughput_by_length", "state_by_length"):
        records = make_speeds(batches=(1, 4, 64), lengths=(64, 256, 1024))
    elif figure == "recall_by_throughput":
        records += make_speeds(batches=(8,), lengths=(64,))
    return records


def make_speeds(batches: tuple[int, ...], lengths: tuple[int, ...]) -> list[Record]:
    """Prefill and decode of every architecture: a batch at the first length, each length at the first batch."""
    records = []
    for mixer, settings, state_bytes, _ in architectures():
        places = dict.fromkeys([*((b, lengths[0]) for b in batches), *((batches[0], n) for n in lengths)])
        for kind, (batch, length) in itertools.product(("prefill", "decode"), places):
            state = state_bytes * length // 64 if mixer == "attention" else state_bytes
            record = make_record(mixer, state_bytes=state, study="speed", slices={}, **settings)
            tokens = batch * length if kind == "prefill" else batch
            floor = (1e5 + batch * state) / 1e9 * (length if kind == "prefill" else 1)
            record["config"] = {
                **{k: v for k, v in record["config"].items() if k.startswith(("model.", "mixer."))},
                "throughput.kind": kind,
                "throughput.batch_size": batch,
                "throughput.prompt_length": length,
                "throughput.device_name": "NVIDIA H100",
            }
            record["metrics"] = {
                "tokens_per_second": tokens / (3 * floor + 1e-4),
                "batch_size": batch,
                "floor_seconds": floor,
            }
            record["state"]["length"] = length
            records.append(_named(record))
    return records


def _copy(record: Record) -> Record:
    return json.loads(json.dumps(record))


def _named(record: Record) -> Record:
    record["identity"] = hashlib.sha256(json.dumps(record["config"]).encode()).hexdigest()[:16]
    return record


def write_records(root: Path, records: list[Record], **manifests: list[Record]) -> Path:
    """A runs directory of these records, with a manifest for each study named."""
    for record in records:
        directory = root / record["identity"]
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "result.json").write_text(json.dumps(record))
    for study, members in manifests.items():
        file = root / "studies" / f"{study}.json"
        file.parent.mkdir(exist_ok=True)
        identities = [record["identity"] for record in members]
        file.write_text(json.dumps({"study": study, "identities": identities}))
    return root


@pytest.fixture(scope="session")
def record() -> Callable[..., Record]:
    return make_record


@pytest.fixture(scope="session")
def study() -> Callable[..., list[Record]]:
    return make_study


@pytest.fixture(scope="session")
def records_for() -> Callable[..., list[Record]]:
    return make_records_for


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write records as a runs directory."""

    def into(records: list[Record], **manifests: list[Record]) -> Path:
        return write_records(tmp_path / "runs", records, **manifests)

    return into
