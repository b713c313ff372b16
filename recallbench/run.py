"""From a composed Hydra configuration to a training, checked and named by its hash."""

import dataclasses
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt

from models.settings import SettingError, SettingErrors, attempt, check, construct, require
from recallbench.any_run import AnyRun, Settings, StateDtype, digest, flat
from recallbench.execution import ExecutionConfig, resolve_execution
from recallbench.record import RunDirectory
from recallbench.resolved_model import named, resolve_model, unnamed
from recallbench.task import Task
from recallbench.tasks import TASKS

REQUIRED = ("task", "model", "mixer", "train", "seed")
PARTS = (*REQUIRED, "decode", "members")
"""The parts of a training's configuration that say what is run; the rest says where and how."""


class TrainConfig(BaseModel):
    """How a run trains: AdamW, a cosine over epochs from `learning_rate` to 0.

    `stop_at_accuracy` ends the training of a run as soon as its validation accuracy reaches it. `precision` is that of
    matrix products; parameters, optimiser and sums are in float32.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.1
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
        "task": named(TASKS, config["task"], defaults=True),
        **model.settings,
        "train": train.model_dump(mode="json"),
        "seed": seed,
        "decode": decode.model_dump(mode="json"),
    }
    essence = {
        "task": named(TASKS, config["task"]),
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


def _build_task(group: Settings) -> Task:
    if group.get("name") not in TASKS:
        raise SettingError("name", group.get("name"), f"it must be one of {', '.join(TASKS)}")
    return construct(TASKS[group["name"]], unnamed(group))


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


def execution_of(config: Settings) -> ExecutionConfig:
    """The part of a configuration that changes no result. **Raises** `SettingErrors` as `resolve` does."""
    return resolve_execution(config, PARTS)
