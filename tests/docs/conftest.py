"""What the commands of the guides speak of: models, corpora and runs of those names, small and in this folder."""

import json
import lzma
import os
import random
import shutil
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
import zstandard
from tokenizers import models, pre_tokenizers, trainers

import analysis
import recallbench
from models import build_model
from recallbench.checkpoint import WritableDirectory
from recallbench.execution import ExecutionConfig
from recallbench.runs import execution_of, runs_of

ROOT = Path(recallbench.__file__).parents[1]
HUB = ("gpt2", "EleutherAI/pythia-410m", "hazyresearch/based-360m")
TRAINED = ("3f2a90c1d4e5b678", "77aa01b2c3d4e5f6")

METRICS = {"accuracy": 0.5, "loss": 1.0, "validation_accuracy": 0.5, "validation_loss": 1.0}
SPEED = {"tokens_per_second": 9.0, "batch_size": 8, "floor_seconds": 0.1, "seconds_p50": 0.2, "floor_fraction": 0.5}
MEASURED = {
    "metrics": {**METRICS, **SPEED},
    "slices": [{"sequence_length": 64, "num_kv_pairs": 4, "examples": 8, **METRICS}],
    "state": {"length": 64, "dtype": "float32", "elements": 4, "bytes": 16, "layers": []},
    "cost": {"seconds": 1.0, "tokens": 100},
    "provenance": {"device": "a device"},
}


def record(runs, execution: ExecutionConfig) -> None:
    """Give runs that have none a record, as if they had been carried out."""
    for run in runs:
        directory = WritableDirectory(execution.runs, run)
        if not directory.has_record():
            directory.path.mkdir(parents=True, exist_ok=True)
            directory.weights_path.touch()
            directory.write_record(execution.study, "completed", None, MEASURED)


@pytest.fixture
def at_hand(monkeypatch, tmp_path):
    """The folder in which commands run, with all that they need but the work, which is done at once."""
    monkeypatch.chdir(tmp_path)
    for beside in ("results", "docs"):
        shutil.copytree(ROOT / beside, tmp_path / beside)
    texts = _write_texts()
    for name in HUB:
        _write_model(Path(name), texts[0])
    for identity in TRAINED:
        _write_run(Path("runs") / identity)
    fetch = monkeypatch.setattr
    fetch("recallbench.recall.source.fetch", lambda setting, name, revision: Path(name if name in HUB else HUB[-1]))
    fetch("recallbench.recall.evaluation._check_harness", lambda task, tokenizer, errors: None)  # data of the hub
    for module in ("analysis", "analysis.__main__"):
        fetch(f"{module}.from_wandb", lambda *_, **__: analysis.load("results/based_figure2.parquet"))
    fetch("analysis.__main__.to_wandb", lambda *_, **__: "there")
    # as on the machine that a command is meant for
    monkeypatch.setenv("PATH", str(_with_slurm(tmp_path)), prepend=os.pathsep)
    fetch("recallbench.throughput.measurement.Measurement.check_device", lambda run, device: None)
    fetch("recallbench.perform.perform", lambda runs, execution, stop: record(runs, execution))
    fetch("sweeps.local.run_pool", lambda jobs, *_, **__: [record(runs_of(job), execution_of(job)) for job in jobs])
    fetch("sweeps.slurm.launch_on_slurm", lambda jobs, _, execution, __: [record(job.runs, execution) for job in jobs])
    return tmp_path


def _with_slurm(folder: Path) -> Path:
    """A folder of programs where SLURM's is to be found, which nothing here calls."""
    program = folder / "bin" / "sbatch"
    program.parent.mkdir()
    program.touch(mode=0o755)
    return program.parent


def _write_texts() -> list[str]:
    words = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnr"]
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=4000)) for _ in range(4)]
    pages = [json.dumps({"text": f"---\ntitle: page {i}\n---\n{text}"}) + "\n" for i, text in enumerate(texts)]
    lines = "".join(pages).encode()
    for name in ("corpus", "stories/TinyStories"):
        Path(name).mkdir(parents=True)
    Path("corpus/a.jsonl.zst").write_bytes(zstandard.compress(lines))
    Path("stories/TinyStories/a.jsonl").write_bytes(lines)
    Path("notes.jsonl").write_bytes(lines)
    Path("corpus.jsonl.xz").write_bytes(lzma.compress(lines))
    Path("mine.jsonl").write_text(json.dumps({"text": "colour: red", "key": "colour", "value": "red"}) + "\n")
    asked = {"question": "Which colour?", "answers": [{"text": "red", "answer_start": 19}], "is_impossible": False}
    Path("dev-v2.0.json").write_text(
        json.dumps({"data": [{"paragraphs": [{"context": "What we look at is red.", "qas": [asked]}]}]})
    )
    return texts


def _write_model(folder: Path, text: str) -> None:
    """A model of transformers as far as it is looked at before it runs: architecture, tokeniser, some weights."""
    own = tokenizers.Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel()
    own.train_from_iterator([text], trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"]))
    transformers.PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<|endoftext|>").save_pretrained(folder)
    config = {"model_type": "gpt2", "n_layer": 1, "n_embd": 12, "n_positions": 2048}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"weights")


def _write_run(folder: Path) -> None:
    """A training that has completed, with its weights."""
    settings = {"vocab_size": 257, "d_model": 8, "layers": [{"name": "attention"}]}
    folder.mkdir(parents=True)
    told = {**{f"model.{key}": value for key, value in settings.items()}, "corpus.tokenizer": "bytes"}
    torch.save(build_model(settings).state_dict(), folder / "weights.pt")
    own = {"identity": folder.name, "study": None, "status": "completed", "reason": None, "family": "attention"}
    (folder / "result.json").write_text(json.dumps({**own, "config": told, **MEASURED}))
