"""Perplexity of a language model: overall, on hits of associative recall by their distance, and on the rest."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from recallbench import ranks
from recallbench.members import Parameters
from recallbench.text.associative_recall import bins, codes, hits
from recallbench.text.shards import Stream
from recallbench.train import finite

Answers = Callable[[Parameters, Tensor, None, Tensor], tuple[Tensor, Tensor]]
"""From a member's parameters, tokens and targets [B, N] to losses and answers, [B, N] each."""


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # a few batches would not pay for compiling
def tally(
    answers: Answers,
    members: Sequence[Parameters],
    stream: Stream,
    length: int,
    count: int | None,
    at_once: int,
    frequent: Tensor,
    vocab_size: int,
    shared: bool = False,
) -> Tensor:
    """For every member and bin (`associative_recall.bins`): tokens, summed loss, right answers, [M, bins, 3].

    **Arguments:** `count`: of the stream's windows of so many tokens, how many, evenly spread, None for all;
    `at_once`: how many of them pass through the model together; `shared`: all ranks call, and share the work.
    """
    device = frequent.device
    total = stream.windows(length)
    chosen = range(total) if count is None or count >= total else [i * total // count for i in range(count)]
    mine = list(chosen)[ranks.rank() :: ranks.size()] if shared else list(chosen)
    sums = torch.zeros(len(members), length.bit_length() + 1, 3, dtype=torch.float64, device=device)
    for start in range(0, len(mine), at_once):
        rows = stream.rows(mine[start : start + at_once], length).to(device)
        tokens, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        bin_of = bins(hits(codes(rows, vocab_size), frequent)).flatten().long()
        for i, parameters in enumerate(members):
            losses, answered = answers(parameters, tokens, None, targets)
            each = torch.stack([torch.ones_like(losses), losses, answered == targets], -1)
            sums[i].index_add_(0, bin_of, each.flatten(0, 1).double())
    if shared:
        ranks.add([sums])
    return sums.cpu()


def metrics(sums: Tensor) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a tally [bins, 3] of one member comes to, overall and by distance to the earlier occurrence.

    Perplexities are exponentials of mean losses in nats; null where there is no such token.
    """
    overall, hit, other = (_means(part) for part in (sums.sum(0), sums[1:].sum(0), sums[0]))
    shares = {"ar_share": (sums[1:, 0].sum() / sums[:, 0].sum()).item()}
    named = {**overall, **{f"ar_{k}": v for k, v in hit.items()}, **{f"other_{k}": v for k, v in other.items()}}
    slices = [
        {"distance": 2**k, "distance_below": 2 ** (k + 1), "tokens": int(row[0]), **_means(row)}
        for k, row in enumerate(sums[1:])
        if row[0]
    ]
    return {**named, **shares}, slices


def _means(row: Tensor) -> dict[str, Any]:
    tokens, loss, right = row.tolist()
    if not tokens:
        return {"loss": None, "perplexity": None, "accuracy": None}
    mean = loss / tokens
    perplexity = math.exp(mean) if mean < 700 else None
    return {"loss": finite(mean), "perplexity": finite(perplexity), "accuracy": right / tokens}
