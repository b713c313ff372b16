"""Carrying out runs: what is done already, what resumes, what ends in an error, and a record for each."""

import itertools
import resource
import sys
import traceback
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from models import ModelConfig, build_model
from models.mixers import ALL_MIXERS
from models.settings import SettingError
from recallbench.config import ExecutionConfig, Run
from recallbench.decode import evaluate_recurrently
from recallbench.interrupt import Stopped, StopRequest
from recallbench.logger import Logger, open_logger
from recallbench.members import every_member
from recallbench.record import RunDirectory, provenance
from recallbench.state import measure_state
from recallbench.train import Ended, Training, evaluate


def execute(runs: Sequence[Run], execution: ExecutionConfig, stop: StopRequest) -> None:
    """Give each run a record, unless it has one; `runs` are of one group, so that they train together as members.

    A run whose state has a dtype of its own is evaluated from the weights of the run without, trained first if need be.

    A run that was stopped goes on from its checkpoint. A group that does not fit in memory is halved until it fits;
    a run that does not fit alone, or fails, or diverges, gets a record that says so and disturbs no other.
    **Raises** `Stopped` after saving, once `stop` is made; `SettingError` where a mixer does not run on the device.
    """
    _check_device(runs, execution)
    trained = {run.trained.identity: run.trained for run in runs}
    waiting = []
    for run in trained.values():
        directory = RunDirectory(execution.runs, run)
        if directory.has_record():
            if not execution.rerun:
                continue
            directory.set_aside()
        directory.begin()
        waiting.append(directory)
    _go_on(waiting, execution, stop)
    for run in runs:
        if run.decode.state_dtype is not None and not stop.made:
            _decode(run, execution)
    if stop.made:  # asked for after the last step: what comes after these runs shall not start
        raise Stopped


def _check_device(runs: Sequence[Run], execution: ExecutionConfig) -> None:
    if choose_device(execution.device).type == "cpu":
        names = {name for run in runs if isinstance(run.model, ModelConfig) for name in run.model.mixer_names}
        for name in sorted(name for name in names if ALL_MIXERS[name].needs_gpu):
            raise SettingError("device", execution.device, f"the mixer {name} runs on a GPU alone")


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _go_on(directories: Iterable[RunDirectory], execution: ExecutionConfig, stop: StopRequest) -> None:
    """Train from the checkpoints that are there, those at the same step together."""
    found = [(directory.load_checkpoint(), directory) for directory in directories]
    found.sort(key=lambda pair: _step(pair[0]))
    for _, pairs in itertools.groupby(found, key=lambda pair: _step(pair[0])):
        checkpoints, together = zip(*pairs, strict=True)
        left = _train(together, [c for c in checkpoints if c is not None], execution, stop)
        del checkpoints
        for half in (left[: len(left) // 2], left[len(left) // 2 :]):
            if half:
                _go_on(half, execution, stop)


def _decode(run: Run, execution: ExecutionConfig) -> None:
    """Evaluate a trained run in recurrent form, its state in a dtype of its own, unless that has a record."""
    directory, base = RunDirectory(execution.runs, run), RunDirectory(execution.runs, run.trained)
    if directory.has_record():
        if not execution.rerun:
            return
        directory.set_aside()
    directory.begin()
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
            scores[split] = evaluate_recurrently(model, examples, run.train.batch_size, dtype)
        (validation, _), (test, by_slice) = scores["validation"], scores["test"]
        measured = {
            "metrics": {**test, **{f"validation_{key}": value for key, value in validation.items()}},
            "slices": by_slice,
            "state": measure_state(model, run.task.sequence_length, dtype),
            "cost": training["cost"],
            **came_from,
        }
        directory.write_record(execution.study, "completed", None, measured)
    except Exception as error:
        directory.error_path.write_text(traceback.format_exc())
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        directory.write_record(execution.study, "failed", reason, came_from)


def _step(checkpoint: dict[str, Any] | None) -> int:
    return -1 if checkpoint is None else checkpoint["step"]


def _train(
    directories: Sequence[RunDirectory],
    checkpoints: list[dict[str, Any]],
    execution: ExecutionConfig,
    stop: StopRequest,
) -> list[RunDirectory]:
    """Train members to their records. Returns those that, together, did not fit in memory."""
    device = choose_device(execution.device)
    of = {directory.run.identity: directory for directory in directories}
    with ExitStack() as open_loggers:
        logger = {i: open_loggers.enter_context(open_logger(execution.logger, d.run)) for i, d in of.items()}

        def tell(run: Run, entries: list[dict[str, Any]]) -> None:
            of[run.identity].write_log(entries)
            logger[run.identity].log(entries[-1])

        def end(ended: Ended) -> None:
            measured = _measure(ended, device, len(directories))
            if ended.status == "completed":
                of[ended.run.identity].save_weights(ended.parameters)
            _record(of[ended.run.identity], logger[ended.run.identity], execution, ended.status, ended.reason, measured)

        try:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            training = Training([d.run for d in directories], device, checkpoints)
            training.run(
                stop,
                execution.checkpoint_seconds,
                save=lambda run, checkpoint: of[run.identity].save_checkpoint(checkpoint),
                tell=tell,
                end=end,
            )
        except Exception as error:
            left = [directory for directory in directories if not directory.has_record()]
            full = _out_of_memory(error)
            if full and len(left) > 1:
                return left
            for directory in left:
                directory.error_path.write_text(traceback.format_exc())
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                _record(
                    directory,
                    logger[directory.run.identity],
                    execution,
                    "out_of_memory" if full else "failed",
                    reason,
                    {"provenance": provenance(device, len(directories))},
                )
    return []


def _measure(ended: Ended, device: torch.device, members: int) -> dict[str, Any]:
    """What the record of a member that ended says beside its configuration."""
    run = ended.run
    model = build_model(run.model).to(device)
    model.load_state_dict(ended.parameters, strict=False)
    metrics, by_slice = None, None
    if ended.status == "completed":
        alone = {name: p[None] for name, p in ended.parameters.items()}
        overall, slices = evaluate(every_member(model), alone, run.task.examples("test", device), run.train.batch_size)
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
            "peak_memory_bytes": _peak_memory(device),
        },
        "provenance": provenance(device, members),
    }


def _record(
    directory: RunDirectory,
    logger: Logger,
    execution: ExecutionConfig,
    status: str,
    reason: str | None,
    measured: dict[str, Any],
) -> None:
    logger.finish(directory.write_record(execution.study, status, reason, measured))


def _out_of_memory(error: Exception) -> bool:
    """CUDA has an exception of its own for it; the CPU allocator raises a RuntimeError that only its text tells."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _peak_memory(device: torch.device) -> int:
    """The most bytes held at once: on a GPU by this training, on a CPU by the process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
