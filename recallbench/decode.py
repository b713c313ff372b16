"""Recall in recurrent form: every token a step, the state stored in a dtype of its own between steps.

Training leaves the dtype of the state open: arithmetic runs in the dtype of the weights, and only what is kept from
step to step is rounded. So one trained model stands on the frontier once for each dtype.
"""

from collections.abc import Sequence
from typing import Any

import torch

from models import LanguageModel
from models.huggingface import HuggingFaceModel
from recallbench.task import IGNORED, Examples


@torch.no_grad()
def evaluate_recurrently(
    model: LanguageModel | HuggingFaceModel, slices: Sequence[Examples], batch_size: int, dtype: torch.dtype
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Accuracy and loss, overall and by slice, as `recallbench.train.evaluate` defines them."""
    by_slice: list[dict[str, Any]] = []
    for examples in slices:
        right = loss = 0.0
        for start in range(0, len(examples), batch_size):
            rows = slice(start, start + batch_size)
            batch = Examples(examples.tokens[rows], examples.positions[rows], examples.targets[rows], examples.slice)
            a, b = _evaluate_batch(model, batch, dtype)
            right, loss = right + a, loss + b
        n = len(examples)
        by_slice.append({**examples.slice, "accuracy": right / n, "loss": loss / n, "examples": n})
    total = sum(s["examples"] for s in by_slice)
    overall = {key: sum(s[key] * s["examples"] for s in by_slice) / total for key in ("accuracy", "loss")}
    return overall, by_slice


def _evaluate_batch(
    model: LanguageModel | HuggingFaceModel, batch: Examples, dtype: torch.dtype
) -> tuple[float, float]:
    """Summed over rows: the share of right answers and the mean loss."""
    B, N = batch.tokens.shape
    rows = torch.arange(B, device=batch.tokens.device)
    labels = batch.labels()
    right, loss = torch.zeros(2, B, dtype=torch.float64, device=batch.tokens.device)
    state = model.init_state(B, dtype=dtype)
    for t in range(N):
        logits, state = model.step(batch.tokens[:, t], state)
        asked = labels[:, t] != IGNORED
        answer = labels[:, t].clamp_min(0)
        right += asked & (logits.argmax(-1) == answer)
        loss += asked * (logits.logsumexp(-1) - logits[rows, answer])
    questions = (labels != IGNORED).sum(1).clamp_min(1)
    return (right / questions).sum().item(), (loss / questions).sum().item()
