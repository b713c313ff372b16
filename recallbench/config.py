"""From a composed Hydra configuration to a run: what can change the result, checked and named by its hash."""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, cast

import torch
from annotated_types import Ge, Gt, Le
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, BeforeValidator, ConfigDict, PositiveFloat, PositiveInt
from pydantic_core import PydanticCustomError

from models import Mixer, ModelConfig, build_model
from models.huggingface import HuggingFaceConfig
from models.language_model import build_mixer, check_model
from models.mixers import ALL_MIXERS
from models.settings import SettingError, SettingErrors, check, construct, schema
from recallbench.record import RunDirectory
from recallbench.task import Task
from recallbench.tasks import TASKS

UNDER_STUDY = "mixer"
"""In `model.layers`, the layer whose mixer and settings are the configuration group `mixer`."""

REQUIRED = ("task", "model", "mixer", "train", "seed")
PARTS = (*REQUIRED, "decode", "members")
"""The parts of a training's configuration that say what is run; the rest says where and how."""

T = TypeVar("T")
NonNegative = Annotated[float, Ge(0)]
Settings = Mapping[str, Any]
StateDtype = Literal["float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]


class TrainConfig(BaseModel):
    """How a run trains: AdamW, a cosine over epochs from `learning_rate` to 0.

    `stop_at_accuracy` ends the training of a run as soon as its validation accuracy reaches it. `precision` is that of
    matrix products; parameters, optimiser and sums are in float32.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegative = 0.1
    batch_size: PositiveInt = 256
    epochs: PositiveInt = 32
    stop_at_accuracy: Annotated[float, Gt(0), Le(1)] | None = 0.99
    precision: Literal["float32", "bfloat16"] = "float32"


class Member(BaseModel):
    """What may differ between runs that train together."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    learning_rate: PositiveFloat
    seed: Annotated[int, Ge(0)]
    state_dtype: StateDtype | None = None


class DecodeConfig(BaseModel):
    """How a trained run is evaluated: in parallel form or, with `state_dtype`, token by token, its state in that."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    state_dtype: StateDtype | None = None


class Members(BaseModel):
    """The members of one job, none for a run alone."""

    members: list[Member]


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
    checkpoint_seconds: NonNegative = 60
    rerun: bool = False
    sweep: SweepConfig = SweepConfig()


@dataclasses.dataclass(frozen=True)
class AnyRun:
    """One training or measurement with one resolved configuration, every part of it checked; it gets one record."""

    model: ModelConfig | HuggingFaceConfig
    family: str  # the mixer under study, or the name of the layer pattern
    settings: dict[str, Any]  # every setting by its dotted name, defaults included
    essence: dict[str, Any]  # the settings that can change the result, those at their default left out

    @property
    def identity(self) -> str:
        """The hash of every setting that can change the result, and of nothing else.

        A setting at its default is left out, so that one added later leaves the identities of earlier runs alone.
        """
        return digest(self.essence)

    @property
    def group(self) -> str:
        """Equal for runs that are carried out together."""
        return self.identity

    @property
    def member(self) -> dict[str, Any]:
        """What is its own among the runs of its group, as an entry of `members`."""
        return {}

    @property
    def trained(self) -> "AnyRun":
        """The run whose result this one needs: itself, where it needs none."""
        return self

    def check_device(self, device: torch.device) -> None:
        """**Raises** `SettingError` where it cannot be carried out on a device that its mixers run on."""

    def check_weights(self, runs: str) -> None:
        """**Raises** `SettingError` where the run that it starts from has a record in `runs` without its weights.

        So it is where a record was imported.
        """


@dataclasses.dataclass(frozen=True)
class Run(AnyRun):
    """One training."""

    task: Task
    train: TrainConfig
    seed: int
    decode: DecodeConfig

    @property
    def group(self) -> str:
        """Equal for runs that can train together as members: all but learning rate, seed and the way of decoding."""
        essence = self.trained.essence
        train = {key: value for key, value in essence["train"].items() if key != "learning_rate"}
        return digest({**essence, "train": train, "seed": None})

    @property
    def member(self) -> dict[str, Any]:
        own = {"learning_rate": self.train.learning_rate, "seed": self.seed}
        return {**own, "state_dtype": self.decode.state_dtype}

    @property
    def trained(self) -> "Run":
        """The run whose weights this one evaluates: itself, unless its state has a dtype of its own."""
        essence = {key: value for key, value in self.essence.items() if key != "decode"}
        settings = {**self.settings, "decode.state_dtype": None}
        return dataclasses.replace(self, decode=DecodeConfig(), essence=essence, settings=settings)

    def check_weights(self, runs: str) -> None:
        if self.decode.state_dtype is None:
            return
        base = RunDirectory(runs, self.trained.identity)
        if base.has_record() and base.record()["status"] == "completed" and not base.weights_path.exists():
            expected = f"its training has a record in {runs} and no weights; with null, rerun=true trains it again"
            raise SettingError("decode.state_dtype", self.decode.state_dtype, expected)


class ResolvedModel(NamedTuple):
    """A model's checked settings, and what they contribute to those of a run."""

    config: ModelConfig | HuggingFaceConfig
    family: str
    settings: dict[str, Any]  # the parts `model` and, where it is under study, `mixer`
    essence: dict[str, Any]  # as in `AnyRun`


def resolve(config: Settings) -> Run:
    """The training that a composed configuration describes.

    **Raises** `SettingErrors` with one sentence for each setting that is unknown, ill-typed, out of range, or that
    does not go with another.
    """
    require(config, REQUIRED)
    errors: list[SettingError] = []
    if "data" in config:
        errors.append(SettingError("data", config["data"].get("name"), "it goes with task=lm"))
    task = attempt(errors, "task", lambda: _build_task(config["task"]))
    train = attempt(errors, "train", lambda: check(TrainConfig, config["train"]))
    decode = attempt(errors, "decode", lambda: check(DecodeConfig, config.get("decode") or {}))
    seed = config["seed"]
    check_seed(seed, errors)
    model = resolve_model(config, task.vocab_size if task else 1, errors)
    if errors or not (task and model and train and decode):
        raise SettingErrors(errors)

    settings = {
        "task": _named(TASKS, config["task"], defaults=True),
        **model.settings,
        "train": train.model_dump(mode="json"),
        "seed": seed,
        "decode": decode.model_dump(mode="json"),
    }
    essence = {
        "task": _named(TASKS, config["task"]),
        "model": model.essence,
        "train": train.model_dump(mode="json", exclude_defaults=True),
        "seed": seed,
    }
    if decode.state_dtype is not None:
        essence["decode"] = decode.model_dump(mode="json")
    return Run(model.config, model.family, flat(settings), essence, task, train, seed, decode)


def check_seed(seed: Any, errors: list[SettingError]) -> None:
    """Add to `errors` what is wrong with the seed of a model."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**64:
        errors.append(SettingError("seed", seed, "it must be a whole number from 0 to 2^64 - 1"))


def require(config: Settings, groups: Sequence[str]) -> None:
    """**Raises** `SettingErrors` where a configuration lacks a group."""
    if errors := [SettingError(group, None, "it must be given") for group in groups if config.get(group) is None]:
        raise SettingErrors(errors)


def resolve_model(config: Settings, vocab_size: int, errors: list[SettingError]) -> ResolvedModel | None:
    """The model of the groups `model` and `mixer`, or None with what is wrong with it added to `errors`."""
    before = len(errors)
    label = config["model"].get("family")
    if not isinstance(label, str | None):
        errors.append(SettingError("model.family", label, "it must be a word, or null"))
    layers = config["model"].get("layers")
    model = attempt(errors, "model", lambda: _check_model(config["model"], config["mixer"], vocab_size))
    if isinstance(model, HuggingFaceConfig):
        with torch.device("meta"):
            attempt(errors, "model", lambda: build_model(model))
    elif model and layers:
        for i, layer in enumerate(model.layers):
            with torch.device("meta"):
                where = "mixer" if layers[i] == UNDER_STUDY else f"model.layers[{i}]"
                attempt(errors, where, lambda layer=layer: _try_layer(layer, model.d_model))
    if model is None or len(errors) > before:
        return None
    settings = {"model": {"family": label, **_model_settings(model, defaults=True)}}
    if UNDER_STUDY in (layers or []):
        settings["mixer"] = _named(ALL_MIXERS, config["mixer"], defaults=True)
    family = label or (Path(model.name).name if isinstance(model, HuggingFaceConfig) else config["mixer"]["name"])
    return ResolvedModel(model, family, settings, _model_settings(model, defaults=False))


def _model_settings(model: ModelConfig | HuggingFaceConfig, defaults: bool) -> dict[str, Any]:
    settings = model.model_dump(mode="json", exclude_defaults=not defaults)
    if isinstance(model, ModelConfig):
        settings["layers"] = [_named(ALL_MIXERS, layer, defaults) for layer in cast("list[Settings]", model.layers)]
    return settings


def _build_task(group: Settings) -> Task:
    if group.get("name") not in TASKS:
        raise SettingError("name", group.get("name"), f"it must be one of {', '.join(TASKS)}")
    return construct(TASKS[group["name"]], _unnamed(group))


def _check_model(group: Settings, mixer: Settings, vocab_size: int) -> ModelConfig | HuggingFaceConfig:
    """The model's settings, each of its layers a mapping."""
    settings = {key: value for key, value in group.items() if key != "family"}
    if isinstance(layers := settings.get("layers"), list):
        settings["layers"] = [_layer(i, entry, mixer) for i, entry in enumerate(layers)]
    return check_model({**settings, "vocab_size": vocab_size})


def _layer(i: int, entry: Any, mixer: Settings) -> dict[str, Any]:
    if entry == UNDER_STUDY:
        return dict(mixer)
    if not isinstance(entry, str | dict):
        expected = "it must be the name of a mixer, or a mapping of its name and settings"
        raise SettingError(f"layers[{i}]", entry, expected)
    return {"name": entry} if isinstance(entry, str) else entry


def _try_layer(layer: Any, d_model: int) -> None:
    if "d_model" in layer:  # it would pass for a setting of the mixer's own
        raise SettingError("d_model", layer["d_model"], "it must be left to model.d_model")
    _try_mixer(ALL_MIXERS.get(layer.get("name", "")), json.dumps(layer), d_model)


@functools.lru_cache(maxsize=1024)
def _try_mixer(mixer: type[Mixer] | None, layer: str, d_model: int) -> None:
    """Build a mixer, once for all points of a study that have it; `mixer`: what goes by its name just now."""
    build_mixer(json.loads(layer), d_model)


def attempt(errors: list[SettingError], prefix: str, build: Callable[[], T]) -> T | None:
    """What `build` gives, or None with its errors collected, each under `prefix`."""
    try:
        return build()
    except SettingErrors as found:
        errors += [error.within(prefix) for error in found.errors]
    except SettingError as error:
        errors.append(error.within(prefix))
    return None


def _named(registry: Mapping[str, Any], group: Settings, defaults: bool = False) -> dict[str, Any]:
    """The name of an entry and its settings as plain JSON values, those at their default left out unless asked for."""
    model = schema(registry[group["name"]])
    given = {**({"d_model": 1} if "d_model" in model.model_fields else {}), **_unnamed(group)}
    values = check(model, given).model_dump(mode="json", exclude_defaults=not defaults)
    return {"name": group["name"], **{key: value for key, value in values.items() if key != "d_model"}}


def _unnamed(group: Settings) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "name"}


def flat(tree: Settings) -> dict[str, Any]:
    """Every value of nested settings by its dotted name."""
    return dict(_flatten(tree))


def _flatten(tree: Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def digest(essence: Any) -> str:
    """The hash that names a run of these settings."""
    return hashlib.sha256(json.dumps(essence, sort_keys=True).encode()).hexdigest()[:16]


def plain(config: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain values, without Hydra's own part.

    **Raises** `SettingError` for an interpolation that leads nowhere, or a value that must be given and is not.
    """
    settings = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        return cast("dict[str, Any]", OmegaConf.to_container(settings, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        raise SettingError(error.full_key or "a setting", None, "it must be given") from None
    except OmegaConfBaseException as error:
        absent = str(error).splitlines()[0].removeprefix("Interpolation key ").removesuffix(" not found").strip("'")
        expected = f"{absent} does not exist; choose a configuration that has it"
        raise SettingError(error.full_key or absent, f"${{{absent}}}", expected) from None


def runs_of(config: Settings) -> list[Run]:
    """The runs of a configuration: one, or one for each entry of `members`, which says what is its own."""
    members = check(Members, {"members": config.get("members") or []}).members
    return [
        resolve(
            {
                **config,
                "train": {**config["train"], "learning_rate": m.learning_rate},
                "seed": m.seed,
                "decode": {"state_dtype": m.state_dtype},
            }
        )
        for m in members
    ] or [resolve(config)]


def execution_of(config: Settings, parts: Sequence[str] = PARTS) -> ExecutionConfig:
    """The part of a configuration that changes no result: all but `parts`. **Raises** `SettingErrors` as `resolve`."""
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
