"""Where and how runs are carried out: the part of a configuration that changes no result."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, NonNegativeFloat, PositiveInt
from pydantic_core import PydanticCustomError

from models.settings import SettingError, SettingErrors, check
from recallbench.any_run import Settings


class LoggerConfig(BaseModel):
    """Who is told of a run beside its record: `none`, or `wandb` with its `project` and `entity`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Literal["none", "wandb"] = "none"
    project: str = "recallbench"
    entity: str | None = None


def seconds(budget: object) -> float | None:
    """A time budget in seconds, from such as `90`, `90s`, `9min`, `1.5h` or `2d`; None for none."""
    if budget is None:
        return None
    if isinstance(budget, int | float | str) and not isinstance(budget, bool):
        found = re.fullmatch(r"(\d+|\d*\.\d+)\s*(s|min|h|d|)", str(budget))
        if found and float(found[1]) > 0:
            return float(found[1]) * {"": 1, "s": 1, "min": 60, "h": 3600, "d": 86400}[found[2]]
    raise PydanticCustomError("time_budget", "it must be a time such as 90s, 9min, 1.5h or 2d, or null")


class SweepConfig(BaseModel):
    """How many runs are carried out.

    `wait`: stay until what was handed to a cluster is done. `runs_per_task`: so many runs go into one task of a
    cluster, in whole groups. `time_budget`: seconds after which a process is to be gone, everything saved. `alone`: no
    two runs share a GPU or, on CPUs, a machine.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    wait: bool = False
    runs_per_task: PositiveInt = 1
    time_budget: Annotated[float | None, BeforeValidator(seconds)] = None
    alone: bool = False


class ExecutionConfig(BaseModel):
    """Where and how a run is carried out: none of it changes a result, so none of it is in a run's identity.

    `runs`: the folder of run records. `study`: the name that the records carry. `device`: `auto`, `cpu` or `cuda`.
    `logger`: what is told of the run beside its record. `checkpoint_seconds`: time between checkpoints. `rerun`: run
    again what has a record, which is kept aside. `sweep`: how many runs are.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    runs: str = "runs"
    study: str | None = None
    device: str = "auto"
    logger: LoggerConfig = LoggerConfig()
    checkpoint_seconds: NonNegativeFloat = 60
    rerun: bool = False
    sweep: SweepConfig = SweepConfig()


def resolve_execution(config: Settings, parts: Sequence[str]) -> ExecutionConfig:
    """The part of a configuration that changes no result: all but `parts`. **Raises** `SettingErrors`."""
    own = {key: value for key, value in config.items() if key not in parts}
    execution = check(ExecutionConfig, own)
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", execution.device):
        raise SettingErrors([SettingError("device", execution.device, "it must be auto, cpu, cuda or cuda:INDEX")])
    if execution.device.startswith("cuda"):
        count = torch.cuda.device_count()
        if int(execution.device.partition(":")[2] or 0) >= count:
            number = "no GPU" if count == 0 else "1 GPU" if count == 1 else f"{count} GPUs"
            expected = f"this machine has {number} that torch can use"
            raise SettingErrors([SettingError("device", execution.device, expected)])
    return execution
