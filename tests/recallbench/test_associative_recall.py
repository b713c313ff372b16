"""Hits of associative recall, held to a loop over the definition."""

from collections import Counter
from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recallbench.text import associative_recall
from recallbench.text.associative_recall import bins, codes, frequent_bigrams, hits
from recallbench.text.shards import Stream, write_shard

ROWS = st.integers(2, 40).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 5), min_size=n, max_size=n), min_size=1, max_size=4)
)


def by_a_loop(row, frequent):
    """The distance from each bigram to the one before that is the same, 0 for none and for frequent ones."""
    bigrams, found = list(pairwise(row)), []
    for t, bigram in enumerate(bigrams):
        before = [s for s in range(t) if bigrams[s] == bigram]
        found.append(t - before[-1] if before and bigram not in frequent else 0)
    return found


@settings(max_examples=200, derandomize=True)
@given(rows=ROWS, frequent=st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=6))
def test_hits_are_those_of_a_loop(rows, frequent):
    numbers = torch.tensor(sorted(6 * a + b for a, b in frequent), dtype=torch.int64)
    found = hits(codes(torch.tensor(rows), 6), numbers)
    assert found.tolist() == [by_a_loop(row, frequent) for row in rows]


def test_bins_are_powers_of_two():
    distance = torch.tensor([0, 1, 2, 3, 4, 7, 8, 2047, 2048, 2**40 - 1, 2**40])
    assert bins(distance).tolist() == [0, 1, 2, 2, 3, 3, 4, 11, 12, 40, 41]


@settings(max_examples=50, derandomize=True)
@given(
    shards=st.lists(st.lists(st.integers(0, 4), max_size=30), min_size=1, max_size=4),
    chunk=st.integers(1, 9),
    threshold=st.integers(0, 6),
)
def test_frequent_bigrams_are_those_of_a_counter(shards, chunk, threshold, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    paths = [folder / f"{i}.npy" for i in range(len(shards))]
    for path, shard in zip(paths, shards, strict=True):
        write_shard(path, np.array(shard, np.uint16))
    tokens = [token for shard in shards for token in shard]
    with_chunk = associative_recall.CHUNK
    associative_recall.CHUNK = chunk
    try:
        found = frequent_bigrams(Stream(paths, 0, len(tokens)), 5, threshold)
    finally:
        associative_recall.CHUNK = with_chunk
    counted = Counter(pairwise(tokens))
    assert found.tolist() == sorted(5 * a + b for (a, b), n in counted.items() if n > threshold)
