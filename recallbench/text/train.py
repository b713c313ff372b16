"""Training language models, members side by side, from any step to the end."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from models import LanguageModel
from recallbench import ranks
from recallbench.interrupt import Stopped, StopRequest
from recallbench.members import AdamW, build, each, leaves, one_member, stack, stacks
from recallbench.replay import Replay
from recallbench.text.evaluate import metrics, tally
from recallbench.text.flops import matmul_rate, training_flops
from recallbench.text.run import LanguageRun
from recallbench.text.shards import Order
from recallbench.train import Ended, Progress, autocast, finite


class LanguageTraining:
    """Members of one shape in lockstep on one stream of text, on one device or, by ranks, on several.

    On several, each reads its share of every batch, and gradients are added up: the same sums in another order.
    **Arguments:** `runs`, equal but for learning rate and seed; `checkpoints`, one for each run, all at the same step,
    or None to start. What rank 0 is given counts for all ranks.
    """

    def __init__(
        self, runs: Sequence[LanguageRun], device: torch.device, checkpoints: Sequence[dict[str, Any]] | None = None
    ):
        self.first, self.device = runs[0], device
        self.task, self.train, self.steps = self.first.task, self.first.train, self.first.steps
        self.every = math.ceil(self.steps / self.task.validations)
        self.members = [Progress(run) for run in runs]
        self.model, parameters = stack(build(runs), device)
        self.optimizer = AdamW.start(parameters, self.train.weight_decay, self.train.beta2)
        self.step = 0
        self.seconds = 0.0
        self.timed_seconds, self.timed_tokens = 0.0, 0  # of the steps whose speed counts: their tokens of all members
        self.rates = torch.zeros(len(runs), device=device)
        self.found = torch.zeros(len(runs), 2, device=device)  # loss and gradient norm of the last step
        self.sums = torch.zeros(
            len(runs), 2, device=device
        )  # of loss and gradient norm, since the last line of the log
        self.diverged_at = torch.full((len(runs),), -1, device=device)
        if checkpoints:
            self._restore(checkpoints)
        self.step = ranks.from_first(self.step)
        optimizer = self.optimizer
        for table in (optimizer.parameters, optimizer.mean, optimizer.square):
            ranks.copy_first([*table.values()])
        ranks.copy_first([optimizer.steps, self.sums, self.diverged_at])
        self.replay = None
        if device.type == "cuda" and isinstance(self.model, LanguageModel) and stacks(self.model):
            self.model.generate_code()
            # Sums over ranks are not recorded: what others do may not be over when it is replayed.
            self.replay = Replay(device, 0) if ranks.size() == 1 else None
        self.loss, self.answers = one_member(self.model, "loss"), one_member(self.model, "answers")

        self.stream, self.validation = self.first.corpus.train, self.first.corpus.validation
        self.order = Order(self.stream.windows(self.task.sequence_length), self.train.batch_size, self.task.seed)
        self.frequent = self.first.corpus.frequent_bigrams(self.task.frequent_bigrams).to(device)
        self.flops = training_flops(self.model, self.task.sequence_length)  # of a token
        self.peak = ranks.size() * matmul_rate(self.train, device)

    @property
    def at_once(self) -> int:
        """How many sequences pass through the model together, on each rank."""
        return self.train.micro_batch_size or math.ceil(self.train.batch_size / ranks.size())

    def run(
        self,
        stop: StopRequest,
        checkpoint_seconds: float,
        save: Callable[[LanguageRun, dict[str, Any]], None],
        tell: Callable[[LanguageRun, list[dict[str, Any]]], None],
        end: Callable[[Ended[LanguageRun]], None],
    ) -> None:
        """Train to the end of every member; as `recallbench.train.Training.run`."""
        saved_at = time.monotonic()
        since, counts = saved_at, False  # the first step compiles, and does not count for the speed
        at = self.step

        def pass_time() -> None:
            """What has been computed since counts as time of training."""
            nonlocal since, at
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            now = time.monotonic()
            self.seconds += now - since
            if counts:
                self.timed_seconds += now - since
                self.timed_tokens += (self.step - at) * self.first.step_tokens * len(self.members)
            since, at = now, self.step

        while self.members:
            self.train_step()
            if not counts:
                pass_time()
                counts = True
            if self.step % self.every == 0 or self.step == self.steps:
                pass_time()
                self.validate(tell)
                self.seconds += time.monotonic() - since
                self._retire(end)
                since = time.monotonic()
            if not self.members:
                return
            stopping = ranks.anyone(stop.made)
            if stopping or time.monotonic() - saved_at > checkpoint_seconds:
                pass_time()
                self._save(save)
                since = saved_at = time.monotonic()
            if stopping:
                raise Stopped

    def train_step(self) -> None:
        """One step of every member on the windows that are next, nothing in it that waits for the device."""
        self.set_rates()
        windows = self.order(self.step)[ranks.rank() :: ranks.size()]
        rows = self.stream.rows(windows, self.task.sequence_length)
        if self.device.type == "cuda":
            rows = rows.pin_memory().to(self.device, non_blocking=True)
        if self.replay is None:
            self._all_members(rows)
        else:
            self.replay(rows.shape, self._all_members, rows)
        self.step += 1
        self.sums += self.found
        broke = ~self.found.isfinite().all(1) & (self.diverged_at < 0)
        self.diverged_at.masked_fill_(broke, self.step)

    def _all_members(self, rows: Tensor) -> None:
        """A step of every member on this rank's part [b, N + 1] of the batch, every result written in place."""
        for i in range(len(self.members)):
            self.found[i] = self._step_of(i, rows)

    def _step_of(self, i: int, rows: Tensor) -> Tensor:
        """A step of member `i` on this rank's part [b, N + 1] of the batch: loss and norm of the gradient, [2]."""
        parameters = leaves(each(self.optimizer.parameters)[i])
        gradients = [torch.zeros_like(p) for p in parameters.values()]
        total = torch.zeros((), device=self.device)
        for part in rows.split(self.at_once):
            with autocast(self.train, self.device):
                losses = self.loss(parameters, part[:, :-1].contiguous(), None, part[:, 1:].contiguous())
            loss = losses.sum() / self.first.step_tokens
            for gradient, more in zip(gradients, torch.autograd.grad(loss, list(parameters.values())), strict=True):
                gradient.add_(more)
            total += loss.detach()
        ranks.add([*gradients, total])
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.train.clip is not None:
            share = (self.train.clip / (norm + 1e-6)).clamp_max(1)
            for gradient in gradients:
                gradient.mul_(share)
        self.optimizer.step(i, gradients, self.rates[i])
        return torch.stack([total, norm])

    def set_rates(self) -> None:
        """Each member's place on its warm-up or cosine."""
        share = schedule(self.step, self.steps, self.train.warmup, self.train.final_rate)
        self.rates.copy_(torch.tensor([share * member.run.train.learning_rate for member in self.members]))

    def validate(self, tell: Callable[[LanguageRun, list[dict[str, Any]]], None]) -> None:
        """Validate every member and write its line of the log."""
        with autocast(self.train, self.device):
            sums = tally(
                self.answers,
                each(self.optimizer.parameters),
                self.validation,
                self.task.sequence_length,
                self.task.validation_sequences,
                self.at_once,
                self.frequent,
                self.first.corpus.vocab_size,
                shared=True,
            )
        steps = self.step - (self.members[0].log[-1]["step"] if self.members[0].log else 0)
        means = (self.sums / steps).tolist()
        self.sums.zero_()
        speed = self.speed()
        for i, member in enumerate(self.members):
            found, _ = metrics(sums[i])
            entry = {
                "step": self.step,
                "steps": self.steps,
                "tokens": self.step * self.first.step_tokens,
                "learning_rate": self.rates[i].item(),
                "train_loss": means[i][0],
                "gradient_norm": means[i][1],
                **{f"validation_{key}": found[key] for key in ("loss", "accuracy", "ar_loss", "other_loss")},
                "seconds": self.seconds,
                **speed,
            }
            member.log.append({key: finite(value) for key, value in entry.items()})
            tell(member.run, member.log)
            if finite(found["loss"]) is None and self.diverged_at[i] < 0:
                self.diverged_at[i] = self.step

    def speed(self) -> dict[str, float | None]:
        """Tokens a second, of all members together, and their model FLOPs over what the devices' products reach."""
        if not self.timed_seconds:
            return {"tokens_per_second": None, "mfu": None}
        speed = self.timed_tokens / self.timed_seconds
        return {"tokens_per_second": speed, "mfu": None if self.flops is None else speed * self.flops / self.peak}

    def _retire(self, end: Callable[[Ended[LanguageRun]], None]) -> None:
        """Let go of the members that are done, so that the others go on without them."""
        staying = []
        for i, broke_at in enumerate(self.diverged_at.tolist()):
            if broke_at >= 0:
                self._end(i, "diverged", f"the loss or its gradient was not finite at step {broke_at}", end)
            elif self.step == self.steps:
                self._end(i, "completed", None, end)
            else:
                staying.append(i)
        if len(staying) < len(self.members):
            index = torch.tensor(staying, dtype=torch.int64, device=self.device)
            self.members = [self.members[i] for i in staying]
            self.rates, self.found = self.rates[index], self.found[index]
            self.sums, self.diverged_at = self.sums[index], self.diverged_at[index]
            self.optimizer = self.optimizer.of(index)
            if self.replay is not None:  # what was recorded knows the old tensors
                self.replay = Replay(self.device, 0)

    def _end(self, i: int, status: str, reason: str | None, end: Callable[[Ended[LanguageRun]], None]) -> None:
        member = self.members[i]
        own = {name: p[i].detach() for name, p in self.optimizer.parameters.items()}
        tokens = self.step * self.first.step_tokens
        end(Ended(member.run, status, reason, member.log, self.step, tokens, self.seconds, own))

    def _save(self, save: Callable[[LanguageRun, dict[str, Any]], None]) -> None:
        """A checkpoint for each member alone, so that it can go on in any company."""
        if ranks.rank():
            return
        for i, member in enumerate(self.members):
            checkpoint = {
                "step": self.step,
                "seconds": self.seconds,
                "timed": [self.timed_seconds, self.timed_tokens],
                "sums": self.sums[i].cpu(),
                "diverged_at": int(self.diverged_at[i]),
                "log": member.log,
                **self.optimizer.saved(i),
            }
            save(member.run, checkpoint)

    def _restore(self, checkpoints: Sequence[dict[str, Any]]) -> None:
        self.step = checkpoints[0]["step"]
        self.seconds = max(c["seconds"] for c in checkpoints)
        self.timed_seconds, self.timed_tokens = checkpoints[0]["timed"]
        self.sums.copy_(torch.stack([c["sums"] for c in checkpoints]))
        self.diverged_at.copy_(torch.tensor([c["diverged_at"] for c in checkpoints]))
        self.optimizer.load(checkpoints, self.step)
        for member, checkpoint in zip(self.members, checkpoints, strict=True):
            member.log = checkpoint["log"]


def schedule(step: int, steps: int, warmup: float, final: float) -> float:
    """The share of the learning rate at a step, counted from 0: linear up to 1, then a cosine down to `final`."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
