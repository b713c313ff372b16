"""Carrying out trainings of language models, alone or as one of several ranks."""

from collections.abc import Sequence
from typing import Any

import torch

from models import build_model
from recallbench import ranks
from recallbench.device import check_device, choose_device
from recallbench.execute import Kind, carry_out
from recallbench.execution import ExecutionConfig
from recallbench.interrupt import CannotGoOn, Stopped, StopRequest
from recallbench.members import one_member
from recallbench.memory import peak_memory
from recallbench.provenance import provenance
from recallbench.state import measure_state
from recallbench.text.evaluate import metrics, tally
from recallbench.text.flops import matmul_rate, training_flops
from recallbench.text.run import LanguageRun
from recallbench.text.train import LanguageTraining
from recallbench.train import Ended, autocast


def execute(runs: Sequence[LanguageRun], execution: ExecutionConfig, stop: StopRequest) -> None:
    """Give each run a record, unless it has one; **raises** as `recallbench.execute.execute`.

    With several ranks, `CannotGoOn` where rank 0 gave up in the middle, and the others have nobody to go on with.
    """
    check_device(runs, execution)
    device = choose_device(execution.device)
    with ranks.joined(device):
        if ranks.rank():
            _follow(runs, device, stop)
        else:
            _lead(runs, execution, stop)
    if stop.made:
        raise Stopped


def _lead(runs: Sequence[LanguageRun], execution: ExecutionConfig, stop: StopRequest) -> None:
    """The part of rank 0, which tells the others what it trains."""
    begun: list[LanguageTraining] = []

    def training(
        together: Sequence[LanguageRun], device: torch.device, checkpoints: Sequence[dict[str, Any]]
    ) -> LanguageTraining:
        ranks.from_first([run.identity for run in together])
        begun.append(LanguageTraining(together, device, checkpoints))
        return begun[-1]

    carry_out(runs, Kind(training, _measure), execution, stop)
    if ranks.size() > 1 and any(training.members for training in begun):
        raise CannotGoOn("training ended before its last step on rank 0; its record or its error.txt says why")
    ranks.from_first(None)


def _follow(runs: Sequence[LanguageRun], device: torch.device, stop: StopRequest) -> None:
    """The part of the other ranks: to train what rank 0 trains, and leave the rest to it."""

    def nothing(*_: Any) -> None:
        pass

    while (identities := ranks.from_first()) is not None:
        together = [run for run in runs if run.identity in identities]
        LanguageTraining(together, device).run(stop, float("inf"), save=nothing, tell=nothing, end=nothing)


def _measure(ended: Ended[LanguageRun], device: torch.device, members: int) -> dict[str, Any]:
    """What the record of a member that ended says beside its configuration."""
    run, last = ended.run, ended.log[-1]
    model = build_model(run.model).to(device)
    model.load_state_dict(ended.parameters, strict=False)
    found, by_distance = None, None
    if ended.status == "completed":
        with autocast(run.train, device):
            sums = tally(
                one_member(model, "answers"),
                [ended.parameters],
                run.corpus.validation,
                run.task.sequence_length,
                run.task.test_sequences,
                run.train.micro_batch_size or run.train.batch_size,
                run.corpus.frequent_bigrams(run.task.frequent_bigrams).to(device),
                run.corpus.vocab_size,
            )
        overall, by_distance = metrics(sums[0])
        found = {**overall, **{key: value for key, value in last.items() if key.startswith("validation_")}}
    return {
        "metrics": found,
        "slices": by_distance,
        "state": measure_state(model, run.task.sequence_length),
        "cost": {
            "seconds": ended.seconds,
            "steps": ended.steps,
            "tokens": ended.tokens,
            "parameters": sum(p.numel() for p in ended.parameters.values()),
            "peak_memory_bytes": peak_memory(device),
            "tokens_per_second": last["tokens_per_second"],
            "mfu": last["mfu"],
            "flops_per_token": training_flops(model, run.task.sequence_length),
            "matmul_flops_per_second": matmul_rate(run.train, device),
        },
        "provenance": {**provenance(device, members), "ranks": ranks.size()},
    }
