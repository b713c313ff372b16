"""MQAR against its definition, written again as a plain loop over one sequence."""

import hashlib
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from models.settings import SettingError
from recallbench.task import IGNORED
from recallbench.tasks.mqar import MQAR

REJECT = 1e-6
"""The p-value under which a distribution is taken for wrong. Seeds are fixed, so a test that passes goes on passing;
should the random stream change one day, each of the dozen tests below fails wrongly once in a million times. The wrong
laws that they are shown come out far below."""


def examples(N, pairs, vocab_size, n, seed=0, **options):
    (only,) = MQAR(vocab_size, N, pairs, num_test_examples=n, seed=seed, **options).examples("test", "cpu")
    return only


def written_by_hand(N, pairs, vocab_size, random, power=0.01):
    """One sequence, its labels and the offset of each pair's question, in units of two positions."""
    half = vocab_size // 2
    keys = random.permutation(np.arange(1, half))[:pairs]
    values = random.permutation(np.arange(half, vocab_size))[:pairs]
    tokens, labels = random.integers(0, vocab_size, N), np.full(N, IGNORED)
    left, gaps = list(range((N - 2 * pairs) // 2)), []
    for i in range(pairs):
        tokens[2 * i], tokens[2 * i + 1] = keys[i], values[i]
        weight = np.array([power * (j + 1) ** (power - 1) for j in left])
        gaps.append(left.pop(random.choice(len(left), p=weight / weight.sum())))
        at = 2 * pairs + 2 * gaps[-1]
        tokens[at], labels[at] = keys[i], values[i]
    return tokens, labels, gaps


shapes = st.tuples(st.integers(1, 12), st.integers(0, 30), st.integers(0, 40)).map(
    lambda t: {"pairs": t[0], "N": 4 * t[0] + t[1], "vocab_size": 2 * (t[0] + 1) + t[2]}
)


@settings(max_examples=150, derandomize=True)
@given(shape=shapes, n=st.integers(1, 6), seed=st.integers(0, 2**40))
def test_every_row_is_as_defined(shape, n, seed):
    N, pairs, vocab_size = shape["N"], shape["pairs"], shape["vocab_size"]
    found = examples(n=n, seed=seed, **shape)
    assert found.slice == {"sequence_length": N, "num_kv_pairs": pairs}
    assert found.tokens.shape == (n, N)
    assert found.positions.shape == found.targets.shape == (n, pairs)
    for row, positions, targets, labels in zip(*map(torch.Tensor.tolist, (*found[:3], found.labels())), strict=True):
        assert all(0 <= token < vocab_size for token in row)
        keys, values = row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == len(set(positions)) == pairs
        assert all(1 <= key < vocab_size // 2 for key in keys)
        assert all(vocab_size // 2 <= value < vocab_size for value in values)
        assert all(2 * pairs <= p < N and p % 2 == 0 for p in positions)
        assert [row[p] for p in positions] == keys
        assert targets == values
        assert {p: label for p, label in enumerate(labels) if label != IGNORED} == dict(
            zip(positions, targets, strict=True)
        )


def as_drawn_without_replacement(weights, count):
    """Every ordered choice of `count` items, each drawn in proportion to the weights of those left -> probability."""
    chances = {}
    for choice in itertools.permutations(range(len(weights)), count):
        chance, left = 1.0, sum(weights)
        for item in choice:
            chance, left = chance * weights[item] / left, left - weights[item]
        chances[choice] = chance
    return chances


def joint_law(N, pairs, vocab_size, power):
    """(keys, values, gaps) -> probability, all independent of each other."""
    half = vocab_size // 2
    keys = as_drawn_without_replacement([1] * (half - 1), pairs)
    values = as_drawn_without_replacement([1] * (vocab_size - half), pairs)
    gaps = as_drawn_without_replacement([j ** (power - 1) for j in range(1, (N - 2 * pairs) // 2 + 1)], pairs)
    return {(k, v, g): keys[k] * values[v] * gaps[g] for k, v, g in itertools.product(keys, values, gaps)}


def p_value_of_the_joint_law(found, pairs, vocab_size, law):
    draws = torch.cat(
        [
            found.tokens[:, 0 : 2 * pairs : 2] - 1,
            found.targets - vocab_size // 2,
            (found.positions - 2 * pairs) // 2,
        ],
        dim=1,
    )
    seen, counts = draws.unique(dim=0, return_counts=True)
    observed = {
        (tuple(row[:pairs]), tuple(row[pairs : 2 * pairs]), tuple(row[2 * pairs :])): count
        for row, count in zip(seen.tolist(), counts.tolist(), strict=True)
    }
    assert observed.keys() <= law.keys()
    expected = np.array(list(law.values())) * len(found)
    assert expected.min() > 5  # below that the statistic no longer follows the chi-square law
    return stats.chisquare([observed.get(outcome, 0) for outcome in law], expected).pvalue


@pytest.mark.parametrize(
    ("N", "pairs", "vocab_size"),
    [
        pytest.param(12, 2, 6, id="crowded"),  # all keys there are, drawn by sorting
        pytest.param(8, 2, 10, id="sparse"),  # two keys of four, drawn again where they repeat
        pytest.param(13, 1, 8, id="one pair, odd length"),
        pytest.param(14, 3, 8, id="three pairs"),
    ],
)
def test_keys_values_and_gaps_follow_their_joint_law(N, pairs, vocab_size):
    """Not only each law but independence too, and that pair i has the gap drawn i-th."""
    found = examples(N, pairs, vocab_size, 120_000, seed=7)
    right = joint_law(N, pairs, vocab_size, power=0.01)
    assert p_value_of_the_joint_law(found, pairs, vocab_size, right) > REJECT
    uniform = joint_law(N, pairs, vocab_size, power=1.0)
    assert p_value_of_the_joint_law(found, pairs, vocab_size, uniform) < 1e-50
    if pairs > 1:
        last_first = {(k, v, g[::-1]): p for (k, v, g), p in right.items()}
        assert p_value_of_the_joint_law(found, pairs, vocab_size, last_first) < 1e-50


def test_the_power_sets_the_law_of_the_gaps():
    found = examples(12, 2, 6, 60_000, power=2.0)
    assert p_value_of_the_joint_law(found, 2, 6, joint_law(12, 2, 6, power=2.0)) > REJECT
    assert p_value_of_the_joint_law(found, 2, 6, joint_law(12, 2, 6, power=0.01)) < 1e-50


def test_fillers_are_uniform_wherever_they_stand():
    N, pairs, vocab_size = 12, 2, 10
    found = examples(N, pairs, vocab_size, 60_000, seed=3)
    filler = found.labels() == IGNORED
    filler[:, : 2 * pairs] = False
    table = np.stack(
        [np.bincount(found.tokens[:, p][filler[:, p]].numpy(), minlength=vocab_size) for p in range(2 * pairs, N)]
    )
    expected = table.sum(1, keepdims=True) / vocab_size
    statistic = ((table - expected) ** 2 / expected).sum()
    assert stats.chi2.sf(statistic, df=table.shape[0] * (vocab_size - 1)) > REJECT


@pytest.mark.parametrize(("N", "pairs", "vocab_size"), [(64, 4, 8192), (128, 16, 64), (64, 16, 40)])
def test_gaps_at_real_sizes_are_those_of_the_loop(N, pairs, vocab_size):
    random = np.random.default_rng(0)
    by_hand = np.array([written_by_hand(N, pairs, vocab_size, random)[2] for _ in range(700)])
    found = examples(N, pairs, vocab_size, 5000, seed=11)
    gaps = ((found.positions - 2 * pairs) // 2).numpy()
    for i in (0, pairs // 2, pairs - 1):
        assert stats.ks_2samp(gaps[:, i], by_hand[:, i]).pvalue > REJECT, f"pair {i}"
    assert stats.ks_2samp(gaps[:, 0], by_hand[:, -1]).pvalue < 1e-12  # the first drawn is the nearest


def test_tokens_at_real_sizes_are_those_of_the_loop():
    """Counts of all tokens at each position: keys, values and fillers in their places."""
    N, pairs, vocab_size = 24, 4, 20
    random = np.random.default_rng(0)
    by_hand = np.stack([written_by_hand(N, pairs, vocab_size, random)[0] for _ in range(3000)])
    found = examples(N, pairs, vocab_size, 9000, seed=5).tokens.numpy()
    for position in range(N):
        counts = np.stack([np.bincount(rows[:, position], minlength=vocab_size) for rows in (by_hand, found)])
        possible = counts[:, counts.sum(0) > 0]
        assert stats.chi2_contingency(possible).pvalue > REJECT, f"position {position}"


def test_rows_made_in_several_rounds_are_all_different():
    found = examples(16, 4, 8192, 9000)
    assert len(found.tokens.unique(dim=0)) == 9000


def test_the_seed_makes_the_examples_and_nothing_else_does():
    options = {"vocab_size": 64, "train": [segment(16, 2)] * 2, "test": [segment(16, 2)] * 2}

    def everything(seed):
        task = MQAR(**options, seed=seed)
        splits = ("train", "validation", "test")
        return [e.tokens for split in splits for e in task.examples(split, "cpu")]

    before = torch.random.get_rng_state()
    first = everything(seed=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert all(map(torch.equal, first, everything(seed=4)))
    different = [*first, *everything(seed=5)]  # by seed, split and segment
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(different, 2))


def test_the_examples_of_a_seed_stay_the_same_from_version_to_version():
    """Records of earlier versions are compared with new ones of the same identity, so the data must not move."""
    options = {"vocab_size": 64, "train": [segment(16, 2)], "test": [segment(16, 4), segment(32, 8)]}
    task, digest = MQAR(**options), hashlib.sha256()
    for split in ("train", "validation", "test"):
        for found in task.examples(split, "cpu"):
            for tensor in found[:3]:
                digest.update(tensor.numpy().tobytes())
    assert digest.hexdigest()[:16] == "bfde8cb95a224ab8"


def segment(N, pairs, n=20):
    schema = MQAR(64, 16, 2).train[0]
    return type(schema)(sequence_length=N, num_kv_pairs=pairs, num_examples=n)


def test_one_shape_and_listed_segments_are_the_same_task():
    one = MQAR(64, 16, 2, 50, 20)
    listed = MQAR(64, train=[segment(16, 2, 50)], test=[segment(16, 2, 20)])
    for split in ("train", "validation", "test"):
        (a,), (b,) = one.examples(split, "cpu"), listed.examples(split, "cpu")
        assert torch.equal(a.tokens, b.tokens)
    assert one.sequence_length == listed.sequence_length == 16


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"sequence_length": 15, "num_kv_pairs": 4},
            "num_kv_pairs is 4: a sequence of length 15 holds at most 3 pairs and their questions",
        ),
        (
            {"vocab_size": 8, "num_kv_pairs": 4},
            "vocab_size is 8: 4 distinct keys need a vocabulary of at least 10 tokens",
        ),
        (
            {"train": [segment(16, 2)]},
            "test is None: segments must be given for both train and test, or for neither",
        ),
        (
            {"train": [segment(16, 2)], "test": [segment(16, 2)], "num_examples": 3},
            "num_examples is 3: it must be null where train and test list their own segments",
        ),
        (
            {"train": [segment(16, 2)], "test": [segment(16, 5)]},
            "num_kv_pairs is 5: a sequence of length 16 holds at most 4 pairs and their questions",
        ),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(options, sentence):
    with pytest.raises(SettingError) as raised:
        MQAR(**options)
    assert str(raised.value) == sentence


def test_the_least_room_is_enough():
    assert examples(16, 4, 10, 3).tokens.shape == (3, 16)
