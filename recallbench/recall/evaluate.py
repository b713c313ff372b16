"""One evaluation: the weights loaded, the documents read, and what the record says."""

import time
from collections.abc import Callable
from typing import Any

import torch

from recallbench.interrupt import StopRequest
from recallbench.memory import peak_memory
from recallbench.provenance import provenance
from recallbench.recall.evaluation import AnyHarnessConfig, Evaluation, ExtractionConfig, HarnessConfig
from recallbench.recall.extraction import extract
from recallbench.recall.reader import Reader
from recallbench.state import measure_state
from recallbench.text.tokenizer import load_tokenizer


@torch.no_grad()
def evaluate(
    run: Evaluation, device: torch.device, stop: StopRequest, tell: Callable[[int, int], None] = lambda done, of: None
) -> dict[str, Any]:
    """What the record says beside the settings.

    **Raises** `Stopped` between two batches once `stop` is made; `SettingError` where the data cannot be had.
    """
    began = time.monotonic()
    task = run.task
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model = run.source.build(device, run.dtype)
    prefix = run.source.prefix()
    reader = Reader(
        model, load_tokenizer(run.tokenizer), task.context, task.batch_size, prefix, task.read_twice, stop, tell
    )
    if isinstance(task, ExtractionConfig):
        metrics, slices = extract(reader, run.documents[: task.limit], task.generate)
    else:
        from recallbench.recall.harness import answer_as_published, load_tasks, run_tasks  # noqa: PLC0415 - an extra, and slow to import

        assert isinstance(task, HarnessConfig)
        fewshot = task.num_fewshot if isinstance(task, AnyHarnessConfig) else None
        tasks = load_tasks(task.harness_tasks, task.data_dir, run.tokenizer, task.context)
        if not isinstance(task, AnyHarnessConfig):
            answer_as_published(tasks)
        metrics, slices = run_tasks(reader, tasks, task.limit, fewshot)
    seconds = time.monotonic() - began
    return {
        "metrics": metrics,
        "slices": slices,
        "state": measure_state(model, task.context),
        "cost": {
            "seconds": seconds,
            "tokens": reader.tokens_read + reader.tokens_generated,
            "tokens_generated": reader.tokens_generated,
            "parameters": sum(p.numel() for p in model.parameters()),
            "peak_memory_bytes": peak_memory(device),
        },
        "provenance": provenance(device, 1),
    }
