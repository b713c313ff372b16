"""Training and evaluating members, from any step to the end."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from models import LanguageModel
from recallbench.any_run import AnyRun
from recallbench.eager import eagerly
from recallbench.interrupt import Stopped, StopRequest
from recallbench.members import AdamW, Parameters, build, each, every_member, leaves, one_member, stack, stacks
from recallbench.replay import Replay
from recallbench.run import Run
from recallbench.task import IGNORED, Examples, generator


class Batch(NamedTuple):
    """Rows of one segment."""

    tokens: Tensor  # [B, N]
    positions: Tensor  # [B, Q]
    targets: Tensor  # [B, Q]
    share: Tensor  # [B, Q], of each question in the mean


R = TypeVar("R", bound=AnyRun)


@dataclass
class Progress(Generic[R]):
    """One member's own part of the training state, beside its slice of the stacked tensors."""

    run: R
    log: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Ended(Generic[R]):
    """A member that is done: at its last step, at its goal, or at a loss that is no longer finite."""

    run: R
    status: str
    reason: str | None
    log: list[dict[str, Any]]
    steps: int
    tokens: int
    seconds: float
    parameters: Parameters  # of this member alone


class Training:
    """Members of one shape in lockstep, on one device.

    **Arguments:** `runs`, equal but for learning rate and seed; `checkpoints`, one for each run, all at the same step,
    or None to start.
    """

    def __init__(self, runs: Sequence[Run], device: torch.device, checkpoints: Sequence[dict[str, Any]] | None = None):
        first = runs[0]
        self.train, self.device = first.train, device
        self.members = [Progress(run) for run in runs]
        self.model, parameters = stack(build(runs), device)
        self.optimizer = AdamW.start(parameters, self.train.weight_decay)
        self.step = 0
        self.seconds = 0.0
        self.rates = torch.zeros(len(runs), device=device)
        self.epoch_loss = torch.zeros(len(runs), device=device)
        self.diverged_at = torch.full((len(runs),), -1, device=device)
        if checkpoints:
            self._restore(checkpoints)
        self.replay = None
        if device.type == "cuda" and isinstance(self.model, LanguageModel) and stacks(self.model):
            self.replay = Replay(device, len(runs))
            self.model.generate_code()

        self.segments = first.task.examples("train", device)
        self.validation = first.task.examples("validation", device)
        B = self.train.batch_size
        self.batches = [(i, b) for i, segment in enumerate(self.segments) for b in range(max(1, len(segment) // B))]

    def run(
        self,
        stop: StopRequest,
        checkpoint_seconds: float,
        save: Callable[[Run, dict[str, Any]], None],
        tell: Callable[[Run, list[dict[str, Any]]], None],
        end: Callable[[Ended[Run]], None],
    ) -> None:
        """Train to the end of every member.

        `save` is given each member's checkpoint, `tell` each member's log after an epoch, `end` each member that ends.
        **Raises** `Stopped` once `stop` is made and all members are saved.
        """
        saved_at = time.monotonic()
        while self.members:
            # The log tells the epoch, since a checkpoint may lie between its last step and its end.
            epoch = len(self.members[0].log)
            done = self.step - epoch * len(self.batches)
            self.set_rates(epoch)
            order = self.order(epoch)
            for segment, rows in order[done:]:
                started = time.monotonic()
                self.train_step(segment, rows)
                now = time.monotonic()
                self.seconds += now - started
                if stop.made or now - saved_at > checkpoint_seconds:
                    self._save(save)
                    saved_at = time.monotonic()
                if stop.made:
                    raise Stopped
            started = time.monotonic()
            self.end_epoch(epoch, tell)
            self.seconds += time.monotonic() - started
            self._retire(epoch, end)

    def train_step(self, segment: int, rows: Tensor) -> None:
        """One step of every member on some rows of a segment."""
        self.step += 1
        if self.replay is None:
            self._all_members(segment, rows)
        else:
            self.replay(segment, lambda rows: self._all_members(segment, rows), rows)

    def _all_members(self, segment: int, rows: Tensor) -> None:
        """One step of every member, every result written in place and nothing that waits for the device.

        A loss that is not finite is noted, and acted on at the end of the epoch.
        """
        examples = self.segments[segment]
        targets = examples.targets[rows]
        asked = targets != IGNORED
        batch = Batch(examples.tokens[rows], examples.positions[rows], targets, asked / asked.sum())
        if self.device.type == "cpu" and stacks(self.model):
            losses = self._together(batch)
        else:
            alone = [self._alone(i, batch) for i in range(len(self.members))]
            if self.replay is not None:
                self.replay.join()
            losses = torch.stack(alone)
        self.epoch_loss += losses
        broke = ~losses.isfinite() & (self.diverged_at < 0)
        self.diverged_at.copy_(torch.where(broke, self.optimizer.steps[:, 0].to(torch.int64), self.diverged_at))

    def _together(self, batch: Batch) -> Tensor:
        """A step of all members through vmap: the loss of each before it, [M]."""
        parameters = leaves(self.optimizer.parameters)
        with self._autocast():
            losses = every_member(self.model, "loss")(parameters, *batch[:3])
        losses = (losses * batch.share).sum((1, 2))
        gradients = torch.autograd.grad(losses.sum(), list(parameters.values()))
        for i in range(len(self.members)):
            self.optimizer.step(i, [g[i] for g in gradients], self.rates[i])
        return losses.detach()

    def _alone(self, i: int, batch: Batch) -> Tensor:
        """A step of member `i` by itself: its loss before it, []."""
        with nullcontext() if self.replay is None else self.replay.branch(i):
            parameters = leaves(each(self.optimizer.parameters)[i])
            with self._autocast():
                losses = one_member(self.model, "loss")(parameters, *batch[:3])
            loss = (losses * batch.share).sum()
            self.optimizer.step(i, torch.autograd.grad(loss, list(parameters.values())), self.rates[i])
            return loss.detach()

    def _autocast(self) -> torch.autocast:
        return autocast(self.train, self.device)

    def set_rates(self, epoch: int) -> None:
        """Each member's place on its cosine over epochs, from its own learning rate to 0."""
        share = 0.5 * (1 + math.cos(math.pi * epoch / self.train.epochs))
        rates = [share * member.run.train.learning_rate for member in self.members]
        self.rates.copy_(torch.tensor(rates))

    def order(self, epoch: int) -> list[tuple[int, Tensor]]:
        """The batches of an epoch, as (segment, rows): a function of the task's seed and the epoch alone."""
        random = generator("cpu", self.members[0].run.task.seed, "order", epoch)
        shuffled = [torch.randperm(len(segment), generator=random).to(self.device) for segment in self.segments]
        B = self.train.batch_size
        batches = [self.batches[i] for i in torch.randperm(len(self.batches), generator=random).tolist()]
        return [(segment, shuffled[segment][b * B : (b + 1) * B]) for segment, b in batches]

    def end_epoch(self, epoch: int, tell: Callable[[Run, list[dict[str, Any]]], None]) -> None:
        """Validate every member and write its line of the log."""
        with self._autocast():
            answers = every_member(self.model, "answers")
            metrics, _ = evaluate(answers, self.optimizer.parameters, self.validation, self.train.batch_size)
        losses = (self.epoch_loss / len(self.batches)).tolist()
        self.epoch_loss.zero_()
        for i, member in enumerate(self.members):
            entry = {
                "epoch": epoch + 1,
                "epochs": self.train.epochs,
                "step": self.step,
                "learning_rate": self.rates[i].item(),
                "train_loss": losses[i],
                "validation_loss": metrics[i]["loss"],
                "validation_accuracy": metrics[i]["accuracy"],
                "seconds": self.seconds,
            }
            member.log.append({key: finite(value) for key, value in entry.items()})
            tell(member.run, member.log)
            if entry["validation_loss"] is None and self.diverged_at[i] < 0:
                self.diverged_at[i] = self.step

    def _retire(self, epoch: int, end: Callable[[Ended[Run]], None]) -> None:
        """Let go of the members that are done, so that the others go on without them."""
        goal = self.train.stop_at_accuracy
        staying = []
        for i, member in enumerate(self.members):
            broke_at = int(self.diverged_at[i])
            accuracy = member.log[-1]["validation_accuracy"]
            if broke_at >= 0:
                self._end(i, "diverged", f"the loss was not finite at step {broke_at}", end)
            elif epoch + 1 == self.train.epochs or (goal is not None and accuracy >= goal):
                self._end(i, "completed", None, end)
            else:
                staying.append(i)
        if len(staying) < len(self.members):
            self._keep(staying)

    def _end(self, i: int, status: str, reason: str | None, end: Callable[[Ended[Run]], None]) -> None:
        member = self.members[i]
        own = {name: p[i].detach() for name, p in self.optimizer.parameters.items()}
        end(Ended(member.run, status, reason, member.log, self.step, self._tokens(), self.seconds, own))

    def _tokens(self) -> int:
        """Tokens read so far; a member ends at the end of an epoch, so whole epochs have passed."""
        epochs = self.step // len(self.batches)
        B = self.train.batch_size
        return epochs * sum(min(B, len(self.segments[i])) * self.segments[i].tokens.shape[1] for i, _ in self.batches)

    def _keep(self, staying: list[int]) -> None:
        index = torch.tensor(staying, dtype=torch.int64, device=self.device)
        self.members = [self.members[i] for i in staying]
        self.rates, self.epoch_loss = self.rates[index], self.epoch_loss[index]
        self.diverged_at = self.diverged_at[index]
        self.optimizer = self.optimizer.of(index)
        if self.replay is not None:  # what was recorded knows the old tensors
            self.replay = Replay(self.device, len(staying))

    def _save(self, save: Callable[[Run, dict[str, Any]], None]) -> None:
        """A checkpoint for each member alone, so that it can go on in any company."""
        for i, member in enumerate(self.members):
            checkpoint = {
                "step": self.step,
                "seconds": self.seconds,
                "epoch_loss": self.epoch_loss[i].item(),
                "diverged_at": int(self.diverged_at[i]),
                "log": member.log,
                **self.optimizer.saved(i),
            }
            save(member.run, checkpoint)

    def _restore(self, checkpoints: Sequence[dict[str, Any]]) -> None:
        self.step = checkpoints[0]["step"]
        self.seconds = max(c["seconds"] for c in checkpoints)
        self.epoch_loss = torch.tensor([c["epoch_loss"] for c in checkpoints], device=self.device)
        self.diverged_at = torch.tensor([c["diverged_at"] for c in checkpoints], device=self.device)
        self.optimizer.load(checkpoints, self.step)
        for member, checkpoint in zip(self.members, checkpoints, strict=True):
            member.log = checkpoint["log"]


class Precise(Protocol):
    """Training settings with a precision of matrix products."""

    @property
    def precision(self) -> Literal["float32", "bfloat16"]: ...


def autocast(train: Precise, device: torch.device) -> torch.autocast:
    """The precision of matrix products; parameters, optimiser and sums stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, train.precision == "bfloat16", cache_enabled=False)


@torch.no_grad()
@eagerly
def evaluate(
    answers: Callable[[Parameters, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    parameters: Parameters,
    slices: Sequence[Examples],
    batch_size: int,
) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """Accuracy and loss of every member, overall and by slice: means over examples of the mean over their questions.

    `answers`: from stacked parameters, tokens, positions and targets to losses and answers, [M, B, Q] each.
    """
    table = []  # a row a slice: [2, M]
    for examples in slices:
        sums: list[Tensor] = []
        batches = zip(
            *(t.split(batch_size) for t in (examples.tokens, examples.positions, examples.targets)), strict=True
        )
        for tokens, positions, targets in batches:
            losses, answered = answers(parameters, tokens, positions, targets)
            asked = targets != IGNORED
            share = asked / asked.sum(1, keepdim=True).clamp_min(1)
            right = (answered == targets) * share
            sums.append(torch.stack([right.sum((1, 2)), (losses * share).sum((1, 2))]))
        table.append(torch.stack(sums).sum(0))
    sizes = [len(examples) for examples in slices]
    totals = torch.stack(table).double().cpu()  # [slices, 2, M]
    overall = (totals.sum(0) / sum(sizes)).T.tolist()
    by_slice = [
        [
            {**examples.slice, "accuracy": a, "loss": finite(b), "examples": size}
            for examples, size, (a, b) in zip(
                slices, sizes, (totals[:, :, i] / torch.tensor(sizes)[:, None]).tolist(), strict=True
            )
        ]
        for i in range(totals.shape[2])
    ]
    return [{"accuracy": a, "loss": finite(b)} for a, b in overall], by_slice


def finite(value: Any) -> Any:
    """JSON has no NaN: a loss that is not finite is null in the record."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
