"""Language models train as the mathematics says, stopped or not, in any company, on any number of devices."""

import copy
import json
import math
import os
import random
import socket
import subprocess
import sys
from collections import defaultdict
from itertools import pairwise

import hydra
import pytest
import torch
import torch.nn.functional as F
from hydra.core.global_hydra import GlobalHydra

from models import build_model
from models.settings import SettingErrors
from recallbench import ranks
from recallbench.__main__ import CONFIGURATION
from recallbench.composition import plain
from recallbench.execution import ExecutionConfig
from recallbench.interrupt import Stopped, StopRequest
from recallbench.members import build
from recallbench.runs import resolve, runs_of
from recallbench.text.execute import execute
from recallbench.text.shards import Order
from recallbench.text.train import LanguageTraining
from sweeps.grid import expand

STEPS = 6
N, B = 16, 4
PAIRS = [(0.01, 0), (0.003, 1)]

TIMES = ("seconds", "tokens_per_second", "mfu", "peak_memory_bytes", "matmul_flops_per_second")


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """Some words over and over, so that bigrams return."""
    draw = random.Random(0)
    folder = tmp_path_factory.mktemp("text")
    words = ["".join(draw.choices("abcdef", k=3)) for _ in range(12)]
    documents = [" ".join(draw.choices(words, k=draw.randint(5, 60))) for _ in range(80)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return folder


@pytest.fixture(scope="session")
def language(text):
    """The settings of a tiny language model, with changes by dotted name."""

    def configuration(changes=None):
        config = {
            "task": {
                "name": "lm",
                "sequence_length": N,
                "validations": 3,
                "validation_sequences": 5,
                "frequent_bigrams": 300,
            },
            "data": {
                "name": "text",
                "path": str(text / "a.jsonl"),
                "tokenizer": "bytes",
                "validation_fraction": 0.1,
                "folder": str(text / "corpora"),
            },
            "model": {"d_model": 8, "layers": ["short_conv", "mixer"], "mlp_expand": 2},
            "mixer": {"name": "attention"},
            "train": {
                "learning_rate": 0.01,
                "tokens": STEPS * B * N,
                "batch_size": B,
                "warmup": 0.3,
                "precision": "float32",
            },
            "seed": 0,
        }
        for name, value in (changes or {}).items():
            part, *rest = name.split(".")
            if rest:
                config[part][rest[0]] = value
            else:
                config[part] = value
        return copy.deepcopy(config)

    return configuration


@pytest.fixture(scope="session")
def carry_out(language):
    """Train runs of one group in a folder; their records, with their logs."""

    def carried_out(folder, runs, stop=None, **execution):
        execute(runs, ExecutionConfig(runs=str(folder), device="cpu", **execution), stop or StopRequest())
        return [read(folder / run.identity) for run in runs]

    return carried_out


def read(directory):
    log = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return {**json.loads((directory / "result.json").read_text(), parse_constant=pytest.fail), "log": log}


def told(record):
    """What a record says of the result."""
    own = {key: record[key] for key in ("identity", "status", "reason", "metrics", "slices", "state", "config")}
    log = [{key: value for key, value in entry.items() if key not in TIMES} for entry in record["log"]]
    return {**own, "cost": {k: v for k, v in record["cost"].items() if k not in TIMES}, "log": log}


def members(language, changes=None, pairs=PAIRS):
    return [resolve(language({**(changes or {}), "train.learning_rate": r, "seed": s})) for r, s in pairs]


class StopAfter(StopRequest):
    """Made after so many steps: the loop looks once a step."""

    def __init__(self, steps):
        self.left = steps

    @property
    def made(self):
        self.left -= 1
        return self.left <= 0


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("micro", [None, 1, 3])
def test_training_is_that_of_torch(micro, language, carry_out, tmp_path):
    """AdamW, clipping and cross-entropy of torch over whole batches; parts of them only change the order of a sum."""
    clip, decay, beta2 = 0.5, 0.3, 0.9
    settings = {"train.clip": clip, "train.weight_decay": decay, "train.beta2": beta2}
    run = resolve(language({**settings, "train.micro_batch_size": micro}))
    (record,) = carry_out(tmp_path, [run])

    (model,) = build([run])
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, beta2), weight_decay=decay)
    stream = run.corpus.train
    order = Order(stream.windows(N), B, run.task.seed)
    losses, norms = [], []
    for step in range(STEPS):
        rows = stream.rows(order(step), N)
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item())
        warm = min(1, (step + 1) / 2)  # two steps of six
        cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * max(0, step - 2) / 4))
        optimizer.param_groups[0]["lr"] = 0.01 * warm * cosine
        optimizer.step()
        losses.append(loss.item())
    weights = torch.load(tmp_path / run.identity / "weights.pt")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(weights[name], parameter.detach(), rtol=1e-5, atol=1e-8)
    assert [entry["step"] for entry in record["log"]] == [2, 4, 6]
    for i, entry in enumerate(record["log"]):
        assert entry["train_loss"] == pytest.approx(sum(losses[2 * i : 2 * i + 2]) / 2, rel=1e-5)
        assert entry["gradient_norm"] == pytest.approx(sum(norms[2 * i : 2 * i + 2]) / 2, rel=1e-5)


def test_the_record_is_that_of_a_loop_over_tokens(language, carry_out, tmp_path):
    """Loss, perplexity and accuracy, overall, on hits of associative recall by their distance, and on the rest."""
    run = resolve(language())
    (record,) = carry_out(tmp_path, [run])
    model = build_model(run.model)
    model.load_state_dict(torch.load(tmp_path / run.identity / "weights.pt"))
    training = run.corpus.train.read(0, run.corpus.train_tokens).tolist()
    counts = defaultdict(int)
    for bigram in pairwise(training):
        counts[bigram] += 1
    found = defaultdict(list)
    for row in run.corpus.validation.rows(range(run.corpus.validation.windows(N)), N):
        losses = F.cross_entropy(model(row[None, :-1])[0], row[1:], reduction="none").tolist()
        bigrams = list(pairwise(row.tolist()))
        for t, bigram in enumerate(bigrams):
            before = [s for s in range(t) if bigrams[s] == bigram]
            hit = before and counts[bigram] <= 300
            found[2 ** int(math.log2(t - before[-1])) if hit else 0].append(losses[t])
    assert len(found) >= 3
    assert any(n > 300 for n in counts.values())

    def mean(losses):
        return sum(losses) / len(losses)

    metrics = record["metrics"]
    hits = [loss for distance, losses in found.items() if distance for loss in losses]
    every = hits + found[0]
    for name, losses in {"": every, "ar_": hits, "other_": found[0]}.items():
        assert metrics[f"{name}loss"] == pytest.approx(mean(losses), rel=1e-5)
        assert metrics[f"{name}perplexity"] == pytest.approx(math.exp(mean(losses)), rel=1e-5)
    assert metrics["ar_share"] == pytest.approx(len(hits) / len(every))
    assert {s["distance"]: s["tokens"] for s in record["slices"]} == {d: len(x) for d, x in found.items() if d}
    for part in record["slices"]:
        assert part["loss"] == pytest.approx(mean(found[part["distance"]]), rel=1e-5)
    assert record["state"]["length"] == N
    cost = record["cost"]
    assert (cost["steps"], cost["tokens"]) == (STEPS, STEPS * B * N)
    assert cost["mfu"] * cost["matmul_flops_per_second"] == pytest.approx(
        cost["flops_per_token"] * cost["tokens_per_second"]
    )


@pytest.mark.parametrize("mixer", ["attention", "based"])
def test_a_run_stopped_after_any_step_ends_the_same(mixer, language, carry_out, tmp_path):
    runs = members(language, {"mixer": {"name": mixer}})
    expected = [told(record) for record in carry_out(tmp_path / "whole", runs)]
    for step in range(1, STEPS):
        with pytest.raises(Stopped):
            carry_out(tmp_path / str(step), runs, StopAfter(step))
        assert len(list((tmp_path / str(step)).glob("*/checkpoint.pt"))) == 2
        assert [told(record) for record in carry_out(tmp_path / str(step), runs)] == expected, f"stopped at {step}"


def test_members_end_as_if_alone(language, carry_out, tmp_path):
    runs = members(language)
    together = carry_out(tmp_path / "together", runs)
    alone = [carry_out(tmp_path / "alone", [run])[0] for run in runs]
    assert [record["provenance"]["members"] for record in together] == [2, 2]
    assert [told(record) for record in together] == [told(record) for record in alone]
    assert together[0]["metrics"] != together[1]["metrics"]


def test_a_member_that_diverges_leaves_the_others_alone(language, carry_out, tmp_path):
    runs = members(language, {"train.clip": None}, [(0.01, 0), (1e30, 0)])
    good, bad = carry_out(tmp_path / "together", runs)
    assert (good["status"], bad["status"]) == ("completed", "diverged")
    assert "not finite at step" in bad["reason"]
    assert told(good) == told(carry_out(tmp_path / "alone", runs[:1])[0])


@pytest.mark.parametrize("mixer", ["mamba", "gated_deltanet", "h3", "sliding_window"])
def test_mixers_learn_in_bfloat16(mixer, language, carry_out, tmp_path):
    changes = {"mixer": {"name": mixer}, "train.precision": "bfloat16", "train.tokens": 4 * STEPS * B * N}
    (record,) = carry_out(tmp_path, [resolve(language(changes))])
    assert record["log"][-1]["train_loss"] < record["log"][0]["train_loss"] - 0.3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("mixer", ["attention", "based", "mamba", "gated_deltanet", "h3", "sliding_window"])
def test_replayed_graphs_train_as_the_cpu_does(mixer, language):
    runs = members(language, {"mixer": {"name": mixer}, "train.micro_batch_size": 2})
    sums = []
    for device in ("cpu", "cuda"):
        training = LanguageTraining(runs, torch.device(device))
        for _ in range(STEPS):
            training.train_step()
        assert (training.replay is None) == (device == "cpu")
        sums.append(training.sums.cpu())
    torch.testing.assert_close(sums[1], sums[0], rtol=1e-3, atol=0)


def ranked(folder, run, stops=(None, None)):
    """Two processes that train a run together; how each ended: 0 done, 1 stopped, 2 something else."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank, stop in enumerate(stops):
        child = os.fork()
        if not child:
            status = 2
            try:
                os.environ |= {
                    "RANK": str(rank),
                    "WORLD_SIZE": "2",
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
                execute([run], ExecutionConfig(runs=str(folder), device="cpu"), stop or StopRequest())
                status = 0
            except Stopped:
                status = 1
            finally:
                os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (1, 4)),
        ({"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "2", "SLURM_LOCALID": "2"}, (2, 3)),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, (0, 1)),
        ({"SLURM_NTASKS": "3", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, (0, 1)),  # sbatch's own shell
    ],
)
def test_a_process_knows_its_rank_from_who_started_it(environment, expected, monkeypatch):
    monkeypatch.setattr(os, "environ", {**ranks.alone(os.environ), **environment})
    assert (ranks.rank(), ranks.size()) == expected
    monkeypatch.setattr(os, "environ", ranks.alone(os.environ))
    assert (ranks.rank(), ranks.size()) == (0, 1)


def test_two_processes_train_as_one(language, carry_out, tmp_path):
    """The sums of gradients in another order, and nothing else; stopped, where only one of them is asked to."""
    run = resolve(language({"train.micro_batch_size": 1, "train.batch_size": 5, "train.tokens": STEPS * 5 * N}))
    (one,) = carry_out(tmp_path / "one", [run])
    assert ranked(tmp_path / "two", run) == [0, 0]
    assert ranked(tmp_path / "three", run, (None, StopAfter(3))) == [1, 1]
    assert ranked(tmp_path / "three", run) == [0, 0]
    for folder in ("two", "three"):
        two = read(tmp_path / folder / run.identity)
        assert two["provenance"]["ranks"] == 2
        assert [entry["step"] for entry in two["log"]] == [entry["step"] for entry in one["log"]]
        for a, b in zip(one["log"], two["log"], strict=True):
            for name in ("train_loss", "gradient_norm", "validation_loss", "validation_ar_loss"):
                assert b[name] == pytest.approx(a[name], rel=1e-4)
        assert two["metrics"]["loss"] == pytest.approx(one["metrics"]["loss"], rel=1e-4)


def test_a_run_is_named_by_what_changes_its_result(language, text, tmp_path):
    """Not by where its text is, nor by how a step is cut up."""
    before = resolve(language()).identity
    elsewhere = tmp_path / "b.jsonl"
    elsewhere.write_bytes((text / "a.jsonl").read_bytes())
    moved = {"data.path": str(elsewhere), "data.folder": str(tmp_path / "corpora"), "train.micro_batch_size": 2}
    assert resolve(language(moved)).identity == before
    changes = {
        "task.sequence_length": 8,
        "task.validations": 2,
        "task.validation_sequences": 4,
        "task.test_sequences": 3,
        "task.frequent_bigrams": 2,
        "task.seed": 1,
        "data.validation_fraction": 0.2,
        "data.documents": 70,
        "train.learning_rate": 0.02,
        "train.weight_decay": 0.2,
        "train.beta2": 0.9,
        "train.tokens": 100,
        "train.batch_size": 3,
        "train.warmup": 0.1,
        "train.final_rate": 0.2,
        "train.clip": None,
        "train.precision": "bfloat16",
        "seed": 1,
        "mixer": {"name": "based"},
    }
    others = [resolve(language({name: value})).identity for name, value in changes.items()]
    assert len({before, *others}) == 1 + len(changes)
    grouped = {resolve(language({"train.learning_rate": r, "seed": s})).group for r, s in PAIRS}
    assert len(grouped) == 1
    both = runs_of({**language(), "members": [{"learning_rate": r, "seed": s} for r, s in PAIRS]})
    assert [run.member for run in both] == [{"learning_rate": r, "seed": s} for r, s in PAIRS]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"task.sequence_length": 100000}, r"task\.sequence_length is 100000: training has \d+ tokens"),
        ({"train.epochs": 3}, r"train\.epochs is 3: there is no such setting"),
        ({"train.clip": 0}, r"train\.clip is 0: it should be greater than 0"),
        ({"data.name": "web"}, r"data\.name is 'web': it must be one of text, huggingface"),
        ({"data.vocab_size": 10}, r"data\.vocab_size is 10"),
        ({"seed": -1}, r"seed is -1"),
        ({"decode": {"state_dtype": "bfloat16"}}, r"decode\.state_dtype is 'bfloat16'"),
        ({"mixer": {"name": "attention", "num_heads": 3}}, r"mixer\.num_heads is 3"),
    ],
)
def test_what_is_wrong_is_said(changes, expected, language):
    with pytest.raises(SettingErrors, match=expected):
        resolve(language(changes))


def test_the_study_of_real_recall_can_be_run(text):
    """On any corpus: each point resolves, two learning rates a group, 30 million parameters outside the embedding."""
    given = ["+study=real_recall", f"data.path={text}/a.jsonl", f"data.folder={text}/corpora", "data.tokenizer=bytes"]
    given += ["data.validation_fraction=0.5"]
    with hydra.initialize_config_dir(str(CONFIGURATION), version_base="1.3"):
        sweeper = hydra.compose("config", overrides=given, return_hydra_config=True).hydra.sweeper
        loader = GlobalHydra.instance().config_loader()
        points = expand(given, {k: list(v) for k, v in sweeper.params.items()}, list(sweeper.grids), loader)
        runs = [resolve(plain(hydra.compose("config", overrides=list(point)))) for point in points]
    assert len({run.identity for run in runs}) == 18
    assert len({run.group for run in runs}) == 9
    for run in {run.group: run for run in runs}.values():
        with torch.device("meta"):
            model = build_model(run.model)
        outside = sum(p.numel() for p in model.parameters()) - model.embedding.weight.numel()
        assert outside == pytest.approx(30e6, rel=0.05)
        assert run.steps * run.step_tokens == pytest.approx(300e6, rel=0.01)


@pytest.mark.parametrize("path", sorted((CONFIGURATION / "model").glob("*_10m.yaml")), ids=lambda path: path.stem)
def test_a_model_of_10_million_parameters_has_them(path, language):
    with hydra.initialize_config_dir(str(CONFIGURATION), version_base="1.3"):
        composed = plain(hydra.compose("config", overrides=[f"model={path.stem}"]))
    run = resolve(language({"model": composed["model"], "mixer": composed["mixer"]}))
    with torch.device("meta"):
        model = build_model(run.model)
    outside = sum(p.numel() for p in model.parameters()) - model.embedding.weight.numel()
    assert outside == pytest.approx(10e6, rel=0.05)


def test_one_command_trains_on_a_corpus(text, tmp_path):
    """Two learning rates as members, in a worker; then nothing is left to do."""
    command = [
        sys.executable,
        "-m",
        "recallbench",
        "-m",
        "task=lm",
        f"data.path={text}/a.jsonl",
        "data.tokenizer=bytes",
    ]
    command += [f"data.folder={text}/corpora", "data.validation_fraction=0.1", f"task.sequence_length={N}"]
    command += [f"train.tokens={STEPS * B * N}", f"train.batch_size={B}", "train.learning_rate=0.001,0.003"]
    command += ["model.d_model=8", f"runs={tmp_path}", "device=cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "2 runs done" in done.stdout
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*/result.json")]
    assert [record["provenance"]["members"] for record in records] == [2, 2]
    assert {record["status"] for record in records} == {"completed"}
