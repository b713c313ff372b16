"""`python -m recallbench.plain_benchmark`: points of the Figure 2 study trained to the end both ways, side by side.

The plain way is that of a textbook: one run at a time, operation by operation of plain PyTorch, in float32, all logits
in memory, torch's own optimiser and schedule. The other is that of the study: a point's four learning rates in
lockstep, and what is done for speed. Data, initialisation and the order of the batches are the same. On a CPU, to try
it, a small task.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table

from kernels.backend import using
from models import LanguageModel
from recallbench.benchmark import BASED, RATES
from recallbench.benchmark_file import BenchmarkFile
from recallbench.composition import compose, plain
from recallbench.execute import choose_device
from recallbench.interrupt import StopRequest
from recallbench.members import build, every_member
from recallbench.run import Run, resolve
from recallbench.task import Examples
from recallbench.train import Ended, Training, evaluate


class Point(NamedTuple):
    """A point of the study, and the learning rate of the run that is trained both ways."""

    mixer: str
    settings: dict[str, Any]
    d_model: int
    learning_rate: float


POINTS = [Point("linear_attention", BASED, 64, 1e-3), Point("attention", {}, 64, 1e-3)]
SMALL = [
    "task=mqar",
    "task.vocab_size=16",
    "task.sequence_length=16",
    "task.num_kv_pairs=2",
    "task.num_examples=512",
    "task.num_test_examples=64",
    "train.epochs=8",
    "train.batch_size=64",
]


def measure(point: Point, device: torch.device, task: Sequence[str] = ("task=mqar_based",)) -> list[dict[str, Any]]:
    """Two rows: seconds, steps and members of the trainings, and how accurate the run became that both have."""
    settings = [f"mixer={point.mixer}", f"model.d_model={point.d_model}", "model=two_layer"]
    settings += [f"mixer.{key}={value}" for key, value in point.settings.items()]
    precision = "train.precision=bfloat16" if device.type == "cuda" else "train.precision=float32"
    composed = (compose([*task, *settings, precision, f"train.learning_rate={rate}"]) for rate in RATES)
    runs = [resolve(plain(each)) for each in composed]
    same = runs[RATES.index(point.learning_rate)]
    return [
        {
            "mixer": point.mixer,
            "settings": " ".join(f"{key}={value}" for key, value in point.settings.items()),
            "d_model": point.d_model,
            "learning_rate": point.learning_rate,
            "way": way,
            **found,
        }
        for way, found in (("plain", plainly(same, device)), ("recallbench", in_lockstep(runs, same, device)))
    ]


@using("reference")
def plainly(run: Run, device: torch.device) -> dict[str, Any]:
    """One run by itself, as a textbook would train it."""
    train, order = run.train, Training([run], device).order
    segments, validation = (run.task.examples(split, device) for split in ("train", "validation"))
    started = time.perf_counter()
    model = build([run])[0].to(device)
    optimizer = torch.optim.AdamW(model.parameters(), train.learning_rate, weight_decay=train.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, train.epochs)
    labels = [segment.labels() for segment in segments]
    steps = epochs = 0
    for epoch in range(train.epochs):
        for segment, rows in order(epoch):
            logits = model(segments[segment].tokens[rows])
            loss = F.cross_entropy(logits.flatten(0, 1), labels[segment][rows].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
        schedule.step()
        epochs += 1
        if train.stop_at_accuracy is not None and accuracy(model, run, validation) >= train.stop_at_accuracy:
            break
    seconds = time.perf_counter() - started
    tested = accuracy(model, run, run.task.examples("test", device))
    return {"members": 1, "seconds": seconds, "steps": steps, "epochs": epochs, "accuracy": tested}


def in_lockstep(runs: Sequence[Run], same: Run, device: torch.device) -> dict[str, Any]:
    """A point's runs as the study trains them, compilation included; the accuracy and the epochs are of `same`."""
    ended: list[Ended[Run]] = []
    started = time.perf_counter()
    training = Training(runs, device)
    training.run(StopRequest(), float("inf"), lambda *_: None, lambda *_: None, ended.append)
    seconds = time.perf_counter() - started
    (own,) = (member for member in ended if member.run == same)
    model = build([same])[0].to(device)
    model.load_state_dict(own.parameters, strict=False)
    return {
        "members": len(runs),
        "seconds": seconds,
        "steps": sum(member.steps for member in ended),
        "epochs": len(own.log),
        "accuracy": accuracy(model, same, same.task.examples("test", device)),
    }


def accuracy(model: LanguageModel, run: Run, examples: Sequence[Examples]) -> float:
    """Over all slices, in float32."""
    parameters = {name: p.detach()[None] for name, p in model.named_parameters()}
    overall, _ = evaluate(every_member(model, "answers"), parameters, examples, run.train.batch_size)
    return overall[0]["accuracy"]


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """For the terminal: the time of a step of one member, and what became of it."""
    shown = Table("mixer", "D", "way", "members", "seconds", "steps of all", "ms a member-step", "epochs", "accuracy")
    for row in rows:
        share = 1000 * row["seconds"] / row["steps"]
        cells = [row["mixer"], row["d_model"], row["way"], row["members"], f"{row['seconds']:.1f}", row["steps"]]
        shown.add_row(*map(str, cells), f"{share:.3f}", str(row["epochs"]), f"{row['accuracy']:.4f}")
    return shown


def main() -> None:
    """Measure every point both ways, print the table, and with `--out` keep it, each point at once."""
    parser = argparse.ArgumentParser(prog="python -m recallbench.plain_benchmark", description=__doc__)
    parser.add_argument("--out", type=Path, help="a Parquet file to write")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device, console = choose_device(options.device), Console()
    task = ["task=mqar_based"] if device.type == "cuda" else SMALL
    file, measured = BenchmarkFile(options.out, device, len(RATES)), []
    for point in track(POINTS, "points", console=console):
        measured += measure(point, device, task)
        file.keep(measured)
    file.finish()
    console.print(table(measured))


if __name__ == "__main__":
    main()
