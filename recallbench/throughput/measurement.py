"""From a composed Hydra configuration to a measurement of speed, checked and named by its hash."""

import dataclasses
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, NonNegativeFloat, PositiveInt
from pydantic_core import PydanticCustomError

from models.settings import SettingError, SettingErrors, attempt, check, require
from recallbench import run as training
from recallbench.any_run import AnyRun, Settings, StateDtype, flat
from recallbench.device import choose_device, device_name
from recallbench.execution import ExecutionConfig, resolve_execution
from recallbench.resolved_model import resolve_model

REQUIRED = ("throughput", "model", "mixer")
PARTS = (*REQUIRED, "members")
"""The parts of a configuration that say what is measured; the rest says where and how."""

WITHOUT_EFFECT = {"prefill": {"generate", "temperature"}, "decode": set()}
"""For each kind of measurement, the settings that change nothing in it."""


def rows(value: object) -> object:
    """A number of rows, or `largest`."""
    if value == "largest" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise PydanticCustomError("batch_size", "it must be a whole number from 1, or largest")


class ThroughputConfig(BaseModel):
    """What is measured; `conf/throughput.yaml` says each.

    `state_dtype`: by default `dtype`. `backend`: `reference` for plain PyTorch alone, by default Triton's kernels where
    they serve. `device_name`: what the speed belongs to, by default the device of the process that composes the
    configuration; one that measures refuses to where it has another.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    kind: Literal["prefill", "decode"] = "decode"
    batch_size: Annotated[int | str, BeforeValidator(rows)] = 1
    prompt_length: PositiveInt = 1024
    generate: PositiveInt = 128
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    state_dtype: StateDtype | None = None
    backend: Literal["reference"] | None = None
    temperature: NonNegativeFloat = 0
    cuda_graph: bool = True
    passes: PositiveInt = 5
    vocab_size: PositiveInt = 50264
    device_name: str | None = None


class Member(BaseModel):
    """What a job says of its measurement beside its settings: on which device, by the name that is in its identity."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    device_name: str


class Members(BaseModel):
    """The measurement of a job, none at the command line."""

    members: list[Member]


@dataclasses.dataclass(frozen=True)
class Measurement(AnyRun):
    """One measurement of speed."""

    throughput: ThroughputConfig

    @property
    def member(self) -> dict[str, Any]:
        return {"device_name": self.throughput.device_name}

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return getattr(torch, self.throughput.dtype)

    @property
    def state_dtype(self) -> torch.dtype:
        return getattr(torch, self.throughput.state_dtype or self.throughput.dtype)

    @property
    def length(self) -> int:
        """The tokens that the state holds at the end."""
        return self.throughput.prompt_length + (self.throughput.generate if self.throughput.kind == "decode" else 0)

    def check_device(self, device: torch.device) -> None:
        here = device_name(device)
        if here != self.throughput.device_name:
            raise SettingError("throughput.device_name", self.throughput.device_name, f"the device here is {here}")
        if device.type == "cpu" and self.throughput.batch_size == "largest":
            expected = "it needs a GPU, whose memory has an end that can be felt for; on a CPU it must be a number"
            raise SettingError("throughput.batch_size", "largest", expected)


def resolve(config: Settings) -> Measurement:
    """The measurement that a composed configuration describes. **Raises** `SettingErrors` as a training's `resolve`."""
    require(config, REQUIRED)
    if any(part in config for part in training.PARTS if part not in PARTS):
        expected = "measurements are those of python -m recallbench.throughput"
        raise SettingErrors([SettingError("throughput", "part of a training", expected)])
    errors: list[SettingError] = []
    throughput = attempt(errors, "throughput", lambda: check(ThroughputConfig, config["throughput"]))
    model = resolve_model(config, throughput.vocab_size if throughput else 1, errors)
    if throughput and throughput.state_dtype not in (None, throughput.dtype) and "name" in config["model"]:
        expected = f"a cache of transformers has the dtype of the weights, {throughput.dtype}"
        errors.append(SettingError("throughput.state_dtype", throughput.state_dtype, expected))
    if errors or not (throughput and model):
        raise SettingErrors(errors)

    here = choose_device(execution_of(config).device)
    named = throughput.model_copy(update={"device_name": throughput.device_name or device_name(here)})
    without_effect = WITHOUT_EFFECT[throughput.kind]
    settings = {**model.settings, "throughput": named.model_dump(mode="json", exclude=without_effect)}
    changed = named.model_dump(mode="json", exclude=without_effect, exclude_defaults=True)
    measurement = Measurement(
        model.config, model.family, flat(settings), {"model": model.essence, "throughput": changed}, named
    )
    if throughput.device_name is None:
        measurement.check_device(here)
    return measurement


def runs_of(config: Settings) -> list[Measurement]:
    """The measurement of a configuration; in a job's, on the device that its entry of `members` names."""
    members = check(Members, {"members": config.get("members") or []}).members
    return [
        resolve({**config, "throughput": {**config["throughput"], "device_name": member.device_name}})
        for member in members
    ] or [resolve(config)]


def execution_of(config: Settings) -> ExecutionConfig:
    """The part of a configuration that changes no result. **Raises** `SettingErrors` as `resolve` does."""
    return resolve_execution(config, PARTS)
