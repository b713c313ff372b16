"""Associative-recall hits: tokens that complete a bigram which occurred earlier in the same sequence.

A model that has read "Hakuna Matata" can tell what follows the next "Hakuna" by recall alone; unless the bigram is
among the frequent ones of the corpus, which its weights may know. Source: Arora et al. 2023, arXiv 2312.04927,
section 3.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from recallbench.text.shards import Stream

CHUNK = 2**24
"""Bigrams that are counted at a time."""


def codes(tokens: Tensor, vocab_size: int) -> Tensor:
    """A number for each bigram: tokens [..., N + 1] -> [..., N]."""
    return tokens[..., :-1] * vocab_size + tokens[..., 1:]


def distances(bigrams: Tensor) -> Tensor:
    """How far back each was last: codes [B, N] -> [B, N], 0 where it is the first of its kind in its row.

    In a stable sort equal codes are neighbours in the order of their positions.
    """
    ordered, positions = bigrams.sort(dim=1, stable=True)
    again = ordered[:, 1:] == ordered[:, :-1]
    back = torch.where(again, positions[:, 1:] - positions[:, :-1], 0)
    return torch.zeros_like(positions).scatter_(1, positions[:, 1:], back)


def hits(bigrams: Tensor, frequent: Tensor) -> Tensor:
    """As `distances`, but 0 for frequent bigrams, too. **Arguments:** `frequent`: their codes, sorted."""
    if not len(frequent):
        return distances(bigrams)
    at = torch.searchsorted(frequent, bigrams).clamp_max(len(frequent) - 1)
    return distances(bigrams).masked_fill(frequent[at] == bigrams, 0)


def bins(distance: Tensor) -> Tensor:
    """0 for no hit, 1 + k for a distance of 2^k to 2^(k+1) - 1."""
    return torch.frexp(distance.double()).exponent


def frequent_bigrams(stream: Stream, vocab_size: int, threshold: int) -> Tensor:
    """The codes of bigrams that the stream holds more than `threshold` times, sorted."""
    kinds, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for chunk in _chunks(stream, vocab_size):
        more, of_each = np.unique(chunk, return_counts=True)
        kinds, counts = _merged((kinds, more), (counts, of_each))
    return torch.from_numpy(kinds[counts > threshold])


def _chunks(stream: Stream, vocab_size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(stream) - 1, CHUNK):
        tokens = torch.from_numpy(stream.read(start, min(CHUNK, len(stream) - 1 - start) + 1))
        yield codes(tokens, vocab_size).numpy()


def _merged(kinds: Iterable[np.ndarray], counts: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Counts of equal kinds added up, kinds sorted."""
    both, of_each = np.concatenate([*kinds]), np.concatenate([*counts])
    order = np.argsort(both, kind="stable")
    both, of_each = both[order], of_each[order]
    firsts = np.flatnonzero(np.diff(both, prepend=-1))
    return both[firsts], np.add.reduceat(of_each, firsts) if len(firsts) else of_each
