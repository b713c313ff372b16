"""Our models behind the interface of lm-evaluation-harness, and its tasks as evaluations of ours."""

import functools
import importlib.metadata
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import lm_eval
import lm_eval.api.task
import lm_eval.tasks
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import Task
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from models.settings import SettingError
from recallbench.recall.proportion import proportion
from recallbench.recall.reader import Reader

ROOT = Path(lm_eval.tasks.__file__).parent
"""Where lm-eval keeps its tasks."""

VERSION = importlib.metadata.version("lm_eval")

CONTAINED = "contains"
"""The metric of SWDE, FDA and SQuAD-completion: whether the answer is contained in what was generated."""

ANSWER = {"until": ["\n"], "max_gen_toks": 48}
"""How the study of Based generates. The three tasks say so in their code; lm-eval 0.4.13 overrides it for
squad_completion with its default of 256 tokens, up to an empty line.
"""

FEWSHOT_SEED = 1234
"""lm-eval's own."""

NAMES = ("task", "version")
"""What a slice says beside metrics."""


class ReaderLM(TemplateLM):
    """A reader as lm-eval sees it; prompts that are too long lose their beginning."""

    def __init__(self, reader: Reader):
        super().__init__()
        self.reader = reader

    @property
    def eot_token_id(self) -> int:
        return self.reader.prefix[-1] if self.reader.prefix else self.reader.tokenizer.end

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.reader.tokenizer.encode(string)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """The context is read as a prompt is; one that is nothing but the start of a text stays that."""
        start = [self.eot_token_id]
        return self.reader.score(
            [
                (before if before == start else self.reader.prompt(before, len(after) - 1), after)
                for _, before, after in requests
            ]
        )

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, each in windows of the context, every token predicted once."""
        windows, of = [], []
        for index, request in enumerate(requests):
            text: str = request.args[0]
            for window in get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.reader.context, context_len=1
            ):
                windows.append(make_disjoint_window(window))
                of.append(index)
        sums = [0.0] * len(requests)
        for index, (log_likelihood, _) in zip(of, self.reader.score(windows), strict=True):
            sums[index] += log_likelihood
        return sums

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedily, in batches of requests that ask for the same.

        **Raises** `SettingError` where a task asks for a random continuation.
        """
        texts = [""] * len(requests)
        asked: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for index, request in enumerate(requests):
            arguments: Any = request.args
            how: dict[str, Any] = dict(normalize_gen_kwargs(dict(arguments[1])))
            if how.get("do_sample"):
                raise SettingError("task.tasks", request.task_name, "it must generate greedily, and it draws at random")
            until = how.get("until") or []
            stops = (until,) if isinstance(until, str) else tuple(until)
            asked.setdefault((how["max_gen_toks"], stops), []).append(index)
        for (count, stops), indices in asked.items():
            written = self.reader.generate([requests[index].args[0] for index in indices], count, stops)
            for index, text in zip(indices, written, strict=True):
                texts[index] = text
        return texts


@functools.lru_cache(maxsize=64)
def check_tasks(tasks: tuple[str, ...], data_dir: str | None, tokenizer: str | None, context: int) -> None:
    """Load tasks with their data, once for all points of a study that ask for the same.

    **Raises** `SettingError` for what is no task, group or tag of lm-eval, or has no data in `data_dir` or on the hub.
    """
    known = set(_manager(tasks).all_tasks)
    for task in tasks:
        if task not in known:
            expected = f"it must be a task, group or tag of lm-eval {VERSION}, which python -m lm_eval ls tasks lists"
            raise SettingError("tasks", task, expected)
    load_tasks(tasks, data_dir, tokenizer, context)


def load_tasks(tasks: Sequence[str], data_dir: str | None, tokenizer: str | None, context: int) -> dict[str, Task]:
    """Tasks by name, groups and tags replaced by what is in them; `tokenizer`, `context`: for those that make texts.

    **Raises** `SettingError` where the data cannot be had.
    """
    datasets.disable_progress_bars()
    for library in ("lm_eval", "lm-eval", "datasets"):
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        manager = _manager(tasks)
        assert manager.metadata is not None
        manager.metadata.update({"tokenizer": tokenizer, "max_seq_lengths": [context]})  # pyright: ignore
        with _data_from(data_dir):
            return manager.load(list(tasks))["tasks"]
    except Exception as error:  # of the hub, of a file, of a task's own code
        reason = str(error).strip().partition("\n")[0]
        expected = f"the data of {', '.join(tasks)} must be in it, or on the hub where it is null; {reason}"
        raise SettingError("data_dir", data_dir, expected) from None


def _manager(tasks: Sequence[str]) -> TaskManager:
    """An index with these tasks: one of all takes seconds to make, one of folders that are a task's own does not."""
    own = tuple(sorted({ROOT / task for task in tasks}))
    return _index(own if all((folder / f"{folder.name}.yaml").is_file() for folder in own) else (ROOT,))


@functools.cache
def _index(folders: tuple[Path, ...]) -> TaskManager:
    metadata: Any = {"tokenizer": None, "max_seq_lengths": []}  # as `load_tasks` fills them in
    return TaskManager(include_path=list(folders), include_defaults=False, metadata=metadata)


def answer_as_published(tasks: Mapping[str, Task]) -> None:
    """Have SWDE, FDA or SQuAD-completion generate what the study of Based does."""
    for task in tasks.values():
        task.set_config(key="generation_kwargs", value=dict(ANSWER))


def run_tasks(
    reader: Reader, tasks: Mapping[str, Task], limit: int | None, num_fewshot: int | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metrics over all, and a slice for each task: its metrics, and with `contains` an accuracy and its interval."""
    for task in tasks.values():
        if num_fewshot is not None or task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(FEWSHOT_SEED)
    evaluate: Any = lm_eval.evaluate  # its decorator hides its type
    loaded = {"tasks": dict(tasks), "groups": {}, "group_map": {}}
    results = evaluate(ReaderLM(reader), loaded, limit=limit, bootstrap_iters=0, log_samples=True)
    slices = [_slice(name, results) for name in tasks]
    every = {f"{each['task']}/{name}": value for each in slices for name, value in each.items() if name not in NAMES}
    right = [sample for name in tasks for sample in _contained(results["samples"][name])]
    if not right:
        return every, slices
    return {**proportion(right), **(every if len(slices) > 1 else {})}, slices


def _slice(name: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """What lm-eval says of a task: its metrics, without the name of the filter where there is one alone."""
    found = {
        key: value
        for key, value in results["results"][name].items()
        if isinstance(value, int | float) and "_stderr" not in key and key != "sample_len"
    }
    filters = {key.partition(",")[2] for key in found}
    samples = results["samples"][name]
    right = _contained(samples)
    return {
        "task": name,
        "version": results["versions"].get(name),
        **{key.partition(",")[0] if len(filters) == 1 else key: value for key, value in found.items()},
        **(proportion(right) if right else {"examples": len(samples)}),
    }


def _contained(samples: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whether the answer is contained, for each sample of a task that asks for that."""
    return [bool(sample[CONTAINED]) for sample in samples if CONTAINED in sample]


@contextmanager
def _data_from(folder: str | None) -> Iterator[None]:
    """Data sets come from a folder: that of a set's own name in it, where there is one, or else the folder itself.

    The tasks that matter here name their data set in code, where no setting of lm-eval's reaches it.
    """
    if folder is None:
        yield
        return
    load = datasets.load_dataset

    def from_folder(path: str, name: str | None = None, **options: Any) -> Any:
        own = Path(folder) / path
        return load(str(own if own.is_dir() else folder), **({"name": name} if name else {}), **options)

    with patch.object(lm_eval.api.task.datasets, "load_dataset", from_folder):
        yield
