"""From a composed Hydra configuration to an evaluation of a model on documents, checked and named by its hash."""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Len
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from models.settings import SettingError, SettingErrors, attempt, check, require
from recallbench import run as training
from recallbench.any_run import AnyRun, Settings, flat
from recallbench.execution import ExecutionConfig, resolve_execution
from recallbench.recall.documents import Document, read_documents
from recallbench.recall.source import Source, resolve_source
from recallbench.text.tokenizer import Tokenizer, load_tokenizer

REQUIRED = ("task", "model")
PARTS = (*training.PARTS, "data")
"""The parts of a configuration that do not say where and how."""


class EvaluationConfig(BaseModel):
    """What every evaluation has; `conf/task/swde.yaml` says each.

    `tokenizer`: as `load_tokenizer`, by default the model's. `context`: tokens of a prompt and what is generated.
    `limit`: so many documents, the first, of each task; null for all. `batch_size` changes no result.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str
    tokenizer: str | None = None
    context: PositiveInt = 2048
    read_twice: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    limit: PositiveInt | None = None
    batch_size: PositiveInt = 16


class HarnessConfig(EvaluationConfig):
    """A task of lm-evaluation-harness by its own name; `data_dir`: a folder with its data, null for the hub."""

    data_dir: str | None = None

    @property
    def harness_tasks(self) -> list[str]:
        return [self.name]


class AnyHarnessConfig(HarnessConfig):
    """Any `tasks` of lm-evaluation-harness, behind `num_fewshot` examples, null for as many as each is defined with."""

    tasks: Annotated[list[str], Len(1)]
    num_fewshot: NonNegativeInt | None = None

    @property
    def harness_tasks(self) -> list[str]:
        return self.tasks


class ExtractionConfig(EvaluationConfig):
    """Documents of one's own at `path`, of which up to `generate` tokens of answer are asked."""

    path: str
    generate: PositiveInt = 48


TASKS: dict[str, type[EvaluationConfig]] = {
    "swde": HarnessConfig,
    "fda": HarnessConfig,
    "squad_completion": HarnessConfig,
    "lm_eval": AnyHarnessConfig,
    "extraction": ExtractionConfig,
}
"""The tasks that are evaluations, by the name of their configuration."""


@dataclasses.dataclass(frozen=True)
class Evaluation(AnyRun):
    """One evaluation of one model."""

    task: EvaluationConfig
    source: Source
    tokenizer: str
    documents: list[Document]

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations and state."""
        return getattr(torch, self.task.dtype)

    def check_weights(self, runs: str) -> None:
        if not self.source.has_weights():
            expected = f"its weights are not in {runs}, only its record, so that nothing new can be asked of it"
            raise SettingError("model.run", self.settings["model.run"], expected)


class Members(BaseModel):
    """The evaluation of a job, of which there is nothing to say."""

    members: list[dict[str, Any]]


def resolve(config: Settings) -> Evaluation:
    """The evaluation that a composed configuration describes.

    **Raises** `SettingErrors` with a sentence for each setting that is wrong, for weights, documents or a library that
    are not there, and for what does not go together.
    """
    require(config, REQUIRED)
    errors: list[SettingError] = []
    group = config["task"]
    task = attempt(errors, "task", lambda: check(TASKS[group["name"]], group))
    source = attempt(errors, "model", lambda: resolve_source(config["model"], str(config.get("runs") or "runs")))
    documents, digest = [], None
    if isinstance(task, ExtractionConfig):
        documents, digest = attempt(errors, "task", lambda: read_documents(task.path)) or ([], None)
    tokenizer, loaded = None, None
    if task and source:
        tokenizer = task.tokenizer or source.tokenizer
        loaded = attempt(errors, "task", lambda: _tokenizer(tokenizer))
        _check_context(task, source, errors)
    if isinstance(task, HarnessConfig) and not errors:  # last, since it may have to fetch much
        _check_harness(task, tokenizer, errors)
    if source and loaded and source.architecture and hasattr(source.architecture, "layers"):
        least = source.architecture.vocab_size
        if loaded.vocab_size > least:
            expected = f"it has {loaded.vocab_size} tokens, and the model knows {least}"
            errors.append(SettingError("task.tokenizer", tokenizer, expected))
    if errors or not (task and source and loaded and tokenizer):
        raise SettingErrors(errors)

    settings = {**flat({"task": {**task.model_dump(mode="json"), "tokenizer": tokenizer}}), **source.settings}
    return Evaluation(
        source.architecture,  # pyright: ignore[reportArgumentType] - a checkpoint's is known once it is loaded
        source.family,
        settings,
        {"task": _essence(task, digest), "model": source.essence, "tokenizer": loaded.digest},
        task,
        source,
        tokenizer,
        documents,
    )


def runs_of(config: Settings) -> list[Evaluation]:
    """The evaluation of a configuration."""
    check(Members, {"members": config.get("members") or []})
    return [resolve(config)]


def execution_of(config: Settings) -> ExecutionConfig:
    """The part of a configuration that changes no result. **Raises** `SettingErrors` as `resolve` does."""
    return resolve_execution(config, PARTS)


def _essence(task: EvaluationConfig, documents: str | None) -> dict[str, Any]:
    """What of a task changes its result: documents by their content, tasks of lm-eval with its version."""
    without = {"batch_size", "tokenizer", "path", "data_dir"}
    essence = task.model_dump(mode="json", exclude=without, exclude_defaults=True)
    if documents is not None:
        essence["documents"] = documents
    if isinstance(task, HarnessConfig):
        essence["lm_eval"] = importlib.metadata.version("lm_eval")
        if task.data_dir is not None:
            essence["data"] = _folder_digest(task.data_dir)
    return essence


def _folder_digest(folder: str) -> str:
    """Of every file in it, by its path within."""
    content = hashlib.sha256()
    root = Path(folder).expanduser()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            content.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return content.hexdigest()[:16]


def _check_harness(task: HarnessConfig, tokenizer: str | None, errors: list[SettingError]) -> None:
    if importlib.util.find_spec("lm_eval") is None:
        expected = "it needs lm-evaluation-harness: pip install 'recallbench[recall]'"
        errors.append(SettingError("task.name", task.name, expected))
        return
    if task.data_dir is not None and not Path(task.data_dir).expanduser().is_dir():
        errors.append(SettingError("task.data_dir", task.data_dir, "it must be a folder with the task's data"))
    else:
        from recallbench.recall.harness import check_tasks  # noqa: PLC0415 - an extra, and slow to import

        tasks = tuple(task.harness_tasks)
        attempt(errors, "task", lambda: check_tasks(tasks, task.data_dir, tokenizer, task.context))


def _tokenizer(name: str | None) -> Tokenizer:
    if name is None:
        raise SettingError("tokenizer", None, "the model's training says none: it must be given")
    return load_tokenizer(name)


def _check_context(task: EvaluationConfig, source: Source, errors: list[SettingError]) -> None:
    longest = source.longest()
    if longest is not None and task.context > longest:
        errors.append(SettingError("task.context", task.context, f"the model reads {longest} tokens at the most"))
    answer = task.generate if isinstance(task, ExtractionConfig) else 48
    if task.context < 2 * answer:
        expected = f"it must have room for an answer of {answer} tokens and as much of a document"
        errors.append(SettingError("task.context", task.context, expected))
