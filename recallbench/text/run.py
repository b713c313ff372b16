"""From a composed Hydra configuration to the training of a language model, checked and named by its hash."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from models.settings import SettingError, SettingErrors, attempt, check, require
from recallbench.any_run import AnyRun, Settings, digest, flat
from recallbench.execution import ExecutionConfig, resolve_execution
from recallbench.resolved_model import resolve_model
from recallbench.run import Members, check_seed
from recallbench.text.corpus import DATA, Corpus, prepare

NAME = "lm"
"""What the task is called."""

REQUIRED = ("task", "data", "model", "mixer", "train", "seed")
PARTS = (*REQUIRED, "decode", "members")
"""The parts of a configuration that say what is trained; the rest says where and how."""

Share = Annotated[float, Ge(0), Le(1)]


class LanguageTask(BaseModel):
    """To tell the next token of running text, in windows of `sequence_length` of it.

    `validations`: so many times in training, evenly spread, on `validation_sequences` windows; at the end on
    `test_sequences`, both evenly spread over what is held out, null for all of it. `frequent_bigrams`: one that
    training holds more often is frequent, and none to recall. `seed`: of the order of the windows.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Literal["lm"] = NAME
    sequence_length: PositiveInt = 2048
    validations: PositiveInt = 20
    validation_sequences: PositiveInt = 64
    test_sequences: PositiveInt | None = 1024
    frequent_bigrams: NonNegativeInt = 1250
    seed: NonNegativeInt = 0


class LanguageTrain(BaseModel):
    """AdamW, a linear warm-up to `learning_rate`, a cosine from there to `final_rate` times it.

    `tokens`: how many are read in all, in steps of `batch_size` sequences. `micro_batch_size`: of them, how many pass
    through the model at once, on each rank; null for all. `warmup`: its share of the steps. `clip`: of the norm of all
    gradients of a member, null for none. `precision`: of matrix products; parameters, optimiser and sums are float32.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.1
    beta2: Share = 0.95
    tokens: PositiveInt = 300_000_000
    batch_size: PositiveInt = 64
    micro_batch_size: PositiveInt | None = None
    warmup: Share = 0.02
    final_rate: Share = 0.1
    clip: PositiveFloat | None = 1.0
    precision: Literal["float32", "bfloat16"] = "bfloat16"


@dataclasses.dataclass(frozen=True)
class LanguageRun(AnyRun):
    """One training of a language model."""

    task: LanguageTask
    corpus: Corpus
    train: LanguageTrain
    seed: int

    @property
    def group(self) -> str:
        """Equal for runs that can train together as members: all but learning rate and seed."""
        train = {key: value for key, value in self.essence["train"].items() if key != "learning_rate"}
        return digest({**self.essence, "train": train, "seed": None})

    @property
    def member(self) -> dict[str, Any]:
        return {"learning_rate": self.train.learning_rate, "seed": self.seed}

    @property
    def step_tokens(self) -> int:
        """Those of all sequences of a step."""
        return self.train.batch_size * self.task.sequence_length

    @property
    def steps(self) -> int:
        """As many as it takes to read all tokens."""
        return math.ceil(self.train.tokens / self.step_tokens)


def resolve(config: Settings) -> LanguageRun:
    """The training that a composed configuration describes, its corpus tokenised where it is not yet.

    **Raises** `SettingErrors` as a recall task's `resolve`, `SettingError` for what the corpus cannot be read from.
    """
    require(config, REQUIRED)
    errors: list[SettingError] = []
    task = attempt(errors, "task", lambda: check(LanguageTask, config["task"]))
    train = attempt(errors, "train", lambda: check(LanguageTrain, config["train"]))
    data = attempt(errors, "data", lambda: _check_data(config["data"]))
    check_seed(config["seed"], errors)
    if (state_dtype := (config.get("decode") or {}).get("state_dtype")) is not None:
        errors.append(
            SettingError("decode.state_dtype", state_dtype, f"task={NAME} is evaluated in parallel form alone")
        )
    resolve_model(config, 1, errors)  # what is wrong with it is said before hours of tokenising
    if errors or not (task and train and data):
        raise SettingErrors(errors)
    corpus = prepare(data)
    for split, stream in (("training", corpus.train), ("validation", corpus.validation)):
        if not stream.windows(task.sequence_length):
            expected = f"{split} has {len(stream)} tokens, and needs one more than a sequence at the least"
            errors.append(SettingError("task.sequence_length", task.sequence_length, expected))
    model = resolve_model(config, corpus.vocab_size, errors)
    if errors or not model:
        raise SettingErrors(errors)

    settings = {
        "task": task.model_dump(mode="json"),
        "data": data.model_dump(mode="json"),
        "corpus": _told(corpus),
        **model.settings,
        "train": train.model_dump(mode="json"),
        "seed": config["seed"],
    }
    essence = {
        "task": {"name": NAME, **task.model_dump(mode="json", exclude_defaults=True)},
        "corpus": corpus.digest,
        "model": model.essence,
        # How a step is cut up changes the order of a sum alone, as the number of ranks does.
        "train": train.model_dump(mode="json", exclude_defaults=True, exclude={"micro_batch_size"}),
        "seed": config["seed"],
    }
    return LanguageRun(model.config, model.family, flat(settings), essence, task, corpus, train, config["seed"])


def _check_data(group: Settings) -> Any:
    if group.get("name") not in DATA:
        raise SettingError("name", group.get("name"), f"it must be one of {', '.join(DATA)}")
    return check(DATA[group["name"]], group)


def _told(corpus: Corpus) -> Mapping[str, Any]:
    """What the configuration of a run says of its corpus."""
    names = ("digest", "tokenizer", "vocab_size", "documents", "train_documents", "tokens", "train_tokens")
    return {name: getattr(corpus, name) for name in names}


def runs_of(config: Settings) -> list[LanguageRun]:
    """The runs of a configuration: one, or one for each entry of `members`, which says what is its own."""
    members = check(Members, {"members": config.get("members") or []}).members
    return [
        resolve({**config, "train": {**config["train"], "learning_rate": m.learning_rate}, "seed": m.seed})
        for m in members
    ] or [resolve(config)]


def execution_of(config: Settings) -> ExecutionConfig:
    """The part of a configuration that changes no result. **Raises** `SettingErrors` as `resolve` does."""
    return resolve_execution(config, PARTS)
