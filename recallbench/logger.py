"""Who is told of a run while it trains, beside its own log. The run record stays the source of truth."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from recallbench.any_run import AnyRun
from recallbench.execution import LoggerConfig


class Logger(Protocol):
    """Told of every epoch and of the record."""

    def log(self, entry: dict[str, Any]) -> None: ...

    def finish(self, record: dict[str, Any]) -> None: ...


class Silent:
    """Tells no one."""

    def log(self, entry: dict[str, Any]) -> None:
        pass

    def finish(self, record: dict[str, Any]) -> None:
        pass


class WandbLogger:
    """A wandb run for each run: its configuration, its curves, and its record as the summary."""

    def __init__(self, config: LoggerConfig, run: AnyRun):
        import wandb  # noqa: PLC0415 - an extra, and slow to import

        self.run = wandb.init(
            project=config.project,
            entity=config.entity,
            id=run.identity,
            name=f"{run.family}-{run.identity[:6]}",
            group=run.group,
            config=run.settings,
            resume="allow",
            reinit="create_new",  # members each have a run of their own in this process
            mode=None if "WANDB_MODE" in os.environ else "online" if wandb.api.api_key else "offline",
        )

    def log(self, entry: dict[str, Any]) -> None:
        self.run.log(entry, step=entry["step"])

    def finish(self, record: dict[str, Any]) -> None:
        parts = {key: record.get(key) or {} for key in ("metrics", "state", "cost")}
        flat = {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}
        self.run.summary.update({**flat, "status": record["status"], "slices": record.get("slices")})


@contextmanager
def open_logger(config: LoggerConfig, run: AnyRun) -> Iterator[Logger]:
    """The logger that a configuration asks for, closed at the end."""
    if config.name == "none":
        yield Silent()
        return
    logger = WandbLogger(config, run)
    try:
        yield logger
    finally:
        logger.run.finish()
