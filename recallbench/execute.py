"""Carrying out trainings: what is done already or held by others, what resumes, what fails, a record for each."""

import itertools
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from rich.console import Console

from models import build_model
from recallbench.any_run import AnyRun
from recallbench.checkpoint import WritableDirectory
from recallbench.claim import ClaimLost
from recallbench.decode import evaluate_recurrently
from recallbench.device import check_device, choose_device
from recallbench.disk import DiskTrouble
from recallbench.execution import ExecutionConfig
from recallbench.holding import claimed
from recallbench.interrupt import Stopped, StopRequest
from recallbench.logger import Logger, open_logger
from recallbench.members import every_member
from recallbench.memory import out_of_memory, peak_memory
from recallbench.provenance import provenance
from recallbench.run import Run
from recallbench.state import measure_state
from recallbench.train import Ended, Training, autocast, evaluate

BATCHES_AT_ONCE = 4
"""Decoding takes so many batches of training together: without gradients they fit, and few rows leave a GPU idle."""

R = TypeVar("R", bound=AnyRun)


class Trainer(Protocol[R]):
    """Trains members to the end of each."""

    def run(
        self,
        stop: StopRequest,
        checkpoint_seconds: float,
        save: Callable[[R, dict[str, Any]], None],
        tell: Callable[[R, list[dict[str, Any]]], None],
        end: Callable[[Ended[R]], None],
    ) -> None:
        """As `recallbench.train.Training.run`."""
        ...


class Kind(NamedTuple, Generic[R]):
    """How runs of a kind are trained, and what the record of one says that has ended.

    `training`: from runs of a group, the device, and their checkpoints, of all or none; `measure`: from one that has
    ended, the device, and how many trained together.
    """

    training: Callable[[Sequence[R], torch.device, Sequence[dict[str, Any]]], Trainer[R]]
    measure: Callable[[Ended[R], torch.device, int], dict[str, Any]]


def execute(runs: Sequence[Run], execution: ExecutionConfig, stop: StopRequest) -> None:
    """As `carry_out`, of recall tasks.

    A run whose state has a dtype of its own is evaluated from the weights of the run without, trained first if need be.
    **Raises** `Stopped`, too, where `stop` is made after the last step: what comes after these runs shall not start.
    """
    carry_out([run.trained for run in runs], Kind(Training, _measure), execution, stop)
    for run in runs:
        if run.decode.state_dtype is not None and not stop.made:
            _decode(run, execution)
    if stop.made:
        raise Stopped


def carry_out(runs: Sequence[R], kind: Kind[R], execution: ExecutionConfig, stop: StopRequest) -> None:
    """Give each run a record, unless it has one; `runs` are of one group, so that they train together as members.

    A run that another process holds is left to it. Where that is so of the first one to do, the rest is left, too:
    the group is that process's, which is about to claim all of it.

    A run that was stopped goes on from its checkpoint. A group that does not fit in memory is halved until it fits;
    a run that does not fit alone, or fails, or diverges, gets a record that says so and disturbs no other.
    **Raises** `Stopped` after saving, once `stop` is made; `SettingError` where a mixer does not run on the device;
    `DiskTrouble` where a record cannot be written, or nothing be saved at a stop.
    """
    check_device(runs, execution)
    with ExitStack() as claims:
        waiting = []
        for run in {run.identity: run for run in runs}.values():
            directory = WritableDirectory(execution.runs, run)
            if directory.has_record() and not execution.rerun:
                continue
            if claims.enter_context(claimed(directory, execution)):
                waiting.append(directory)
            elif not waiting and not directory.has_record():
                return
        _go_on(waiting, kind, execution, stop)


def _go_on(
    directories: Iterable[WritableDirectory[R]], kind: Kind[R], execution: ExecutionConfig, stop: StopRequest
) -> None:
    """Train from the checkpoints that are there, those at the same step together."""
    found = [(directory.load_checkpoint(), directory) for directory in directories]
    found.sort(key=lambda pair: _step(pair[0]))
    for _, pairs in itertools.groupby(found, key=lambda pair: _step(pair[0])):
        checkpoints, together = zip(*pairs, strict=True)
        left = _train(together, [c for c in checkpoints if c is not None], kind, execution, stop)
        del checkpoints
        for part in left:
            if part:
                _go_on(part, kind, execution, stop)


def _decode(run: Run, execution: ExecutionConfig) -> None:
    """Evaluate a trained run in recurrent form, its state in a dtype of its own, unless that has a record.

    It waits for another time where its training, or itself, is held by another process.
    """
    directory, base = WritableDirectory(execution.runs, run), WritableDirectory(execution.runs, run.trained)
    if not base.has_record() or (directory.has_record() and not execution.rerun):
        return
    with claimed(directory, execution) as ours:
        if ours:
            _evaluate_in(directory, base, execution)


def _evaluate_in(directory: WritableDirectory[Run], base: WritableDirectory[Run], execution: ExecutionConfig) -> None:
    """Give a run its record, from the weights of `base`."""
    run = directory.run
    device = choose_device(execution.device)
    came_from = {"provenance": provenance(device, 1)}
    training = base.record()
    if training["status"] != "completed":
        reason = f"its training has the status {training['status']}"
        directory.write_record(execution.study, training["status"], reason, came_from)
        return
    try:
        model = build_model(run.model).to(device)
        model.load_state_dict(base.load_weights(), strict=False)
        dtype = getattr(torch, run.decode.state_dtype or "")
        scores = {}
        for split in ("validation", "test"):
            examples = run.task.examples(split, device)
            scores[split] = evaluate_recurrently(model, examples, BATCHES_AT_ONCE * run.train.batch_size, dtype)
        (validation, _), (test, by_slice) = scores["validation"], scores["test"]
        measured = {
            "metrics": {**test, **{f"validation_{key}": value for key, value in validation.items()}},
            "slices": by_slice,
            "state": measure_state(model, run.task.sequence_length, dtype),
            "cost": training["cost"],
            **came_from,
        }
        directory.write_record(execution.study, "completed", None, measured)
    except ClaimLost:
        pass
    except DiskTrouble:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        with suppress(ClaimLost):
            directory.write_error(traceback.format_exc())
            directory.write_record(execution.study, "failed", reason, came_from)


def _step(checkpoint: dict[str, Any] | None) -> int:
    return -1 if checkpoint is None else checkpoint["step"]


def _train(
    directories: Sequence[WritableDirectory[R]],
    checkpoints: list[dict[str, Any]],
    kind: Kind[R],
    execution: ExecutionConfig,
    stop: StopRequest,
) -> Sequence[Sequence[WritableDirectory[R]]]:
    """Train members to their records.

    Returns groups that are still to be trained: halves of what, together, did not fit in memory, or those that this
    process still holds where another has taken over one of them.
    """
    device = choose_device(execution.device)
    of = {directory.identity: directory for directory in directories}
    trouble: dict[str, DiskTrouble] = {}  # what could not be saved, and is tried again
    with ExitStack() as open_loggers:
        logger = {i: open_loggers.enter_context(open_logger(execution.logger, d.run)) for i, d in of.items()}

        def save(run: R, checkpoint: dict[str, Any]) -> None:
            with _tolerated(trouble, run):
                of[run.identity].save_checkpoint(checkpoint)

        def tell(run: R, entries: list[dict[str, Any]]) -> None:
            with _tolerated(trouble, run):
                of[run.identity].write_log(entries)
            logger[run.identity].log(entries[-1])

        def end(ended: Ended[R]) -> None:
            measured = kind.measure(ended, device, len(directories))
            if ended.run.identity in trouble:
                of[ended.run.identity].write_log(ended.log)
            if ended.status == "completed":
                of[ended.run.identity].save_weights(ended.parameters)
            _record(of[ended.run.identity], logger[ended.run.identity], execution, ended.status, ended.reason, measured)

        try:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            training = kind.training([d.run for d in directories], device, checkpoints)
            training.run(
                stop,
                execution.checkpoint_seconds,
                save=save,
                tell=tell,
                end=end,
            )
        except Stopped:
            if trouble:
                raise next(iter(trouble.values())) from None
            raise
        except ClaimLost:
            return [[d for d in directories if not d.has_record() and d.holds_claim()]]
        except DiskTrouble:
            raise
        except Exception as error:
            left = [directory for directory in directories if not directory.has_record()]
            full = out_of_memory(error)
            if full and len(left) > 1:
                return left[: len(left) // 2], left[len(left) // 2 :]
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            status = "out_of_memory" if full else "failed"
            came_from = {"provenance": provenance(device, len(directories))}
            for directory in left:
                with suppress(ClaimLost):
                    directory.write_error(traceback.format_exc())
                    _record(directory, logger[directory.identity], execution, status, reason, came_from)
    return ()


@contextmanager
def _tolerated(trouble: dict[str, DiskTrouble], run: AnyRun) -> Iterator[None]:
    """Trouble with the disk is said and noted of the run until it is over; training goes on."""
    try:
        yield
        trouble.pop(run.identity, None)
    except DiskTrouble as error:
        if run.identity not in trouble:
            Console(stderr=True).print(f"{error}; training goes on", markup=False, highlight=False, soft_wrap=True)
        trouble[run.identity] = error


def _measure(ended: Ended[Run], device: torch.device, members: int) -> dict[str, Any]:
    """What the record of a member that ended says beside its configuration."""
    run = ended.run
    model = build_model(run.model).to(device)
    model.load_state_dict(ended.parameters, strict=False)
    metrics, by_slice = None, None
    if ended.status == "completed":
        alone = {name: p[None] for name, p in ended.parameters.items()}
        with autocast(run.train, device):
            answers = every_member(model, "answers")
            overall, slices = evaluate(answers, alone, run.task.examples("test", device), run.train.batch_size)
        last = ended.log[-1]
        metrics = {
            **overall[0],
            "validation_accuracy": last["validation_accuracy"],
            "validation_loss": last["validation_loss"],
        }
        by_slice = slices[0]
    return {
        "metrics": metrics,
        "slices": by_slice,
        "state": measure_state(model, run.task.sequence_length),
        "cost": {
            "seconds": ended.seconds,
            "steps": ended.steps,
            "tokens": ended.tokens,
            "parameters": sum(p.numel() for p in ended.parameters.values()),
            "peak_memory_bytes": peak_memory(device),
        },
        "provenance": provenance(device, members),
    }


def _record(
    directory: WritableDirectory[R],
    logger: Logger,
    execution: ExecutionConfig,
    status: str,
    reason: str | None,
    measured: dict[str, Any],
) -> None:
    logger.finish(directory.write_record(execution.study, status, reason, measured))
