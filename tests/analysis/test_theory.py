"""The bound on recall against the best codes there are, and against toy recurrent models."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from analysis import at_best_learning_rate, load, theory
from analysis.theory import accuracy_bound, bits_of_map, bits_recalled, bits_sufficient, bits_to_recall

sizes = st.tuples(st.integers(1, 300), st.integers(4, 2000)).filter(lambda s: s[0] <= s[1] // 2 - 1)


@given(sizes)
def test_bits_to_recall_count_the_assignments_of_values(size):
    n, vocab = size
    U, keys = vocab - vocab // 2, vocab // 2 - 1
    assert bits_to_recall(n, vocab) == pytest.approx(math.log2(math.perm(U, n)), rel=1e-9, abs=1e-9)
    maps = math.comb(keys, n) * math.perm(U, n)
    assert bits_of_map(n, vocab) == pytest.approx(math.log2(maps), rel=1e-9, abs=1e-6)
    assert bits_to_recall(n, vocab) <= bits_sufficient(n, vocab) + 1e-9


@given(sizes, st.floats(0, 1))
def test_the_bound_goes_from_chance_to_one_and_is_the_inverse(size, accuracy):
    n, vocab = size
    U = vocab - vocab // 2
    enough = float(bits_to_recall(n, vocab))
    assert accuracy_bound(0, n, vocab) == pytest.approx(1 / U)
    assert accuracy_bound([enough, enough + 1], n, vocab).tolist() == [1, 1]
    assert bits_recalled(1.0, n, vocab) == pytest.approx(enough)
    bound = accuracy_bound(np.linspace(0, enough, 50), n, vocab)
    assert (np.diff(bound) >= -1e-12).all()
    reached = accuracy_bound(bits_recalled(accuracy, n, vocab), n, vocab)
    assert reached >= max(accuracy, 1 / U) - 1e-9


@pytest.mark.parametrize(
    ("n", "U", "states"), [(1, 4, 2), (2, 3, 1), (2, 3, 2), (2, 3, 3), (2, 2, 2), (2, 4, 2), (3, 3, 2)]
)
def test_no_code_of_so_many_states_is_better_than_the_bound(n, U, states):
    """All codes: for each state the answers to all n queries; the writer picks the state that fits the values best."""
    values = np.array(list(itertools.permutations(range(U), n)))
    answers = np.array(list(itertools.product(range(U), repeat=n)))
    right = (values[:, None] == answers).mean(-1)  # [assignments, answers]
    best = max(right[:, list(code)].max(1).mean() for code in itertools.combinations(range(len(answers)), states))
    assert best <= accuracy_bound(math.log2(states), n, 2 * U) + 1e-9


def mqar(random, rows, n, vocab):
    """Keys and values [rows, n], each without replacement from its half of the vocabulary."""
    half = vocab // 2
    keys = 1 + random.random((rows, half - 1)).argpartition(n - 1, axis=1)[:, :n]
    values = random.random((rows, vocab - half)).argpartition(n - 1, axis=1)[:, :n]
    return random.permuted(np.stack([keys, values], -1), axis=1).transpose(2, 0, 1)


class Lossless:
    """The last `room` pairs whole, a queue; what it has not is guessed."""

    def __init__(self, room, vocab):
        self.room, self.half = room, vocab // 2
        self.bits = room * (math.log2(self.half) + math.log2(vocab - self.half))  # key 0: an empty place

    def read(self, keys, values):
        self.keys, self.values = keys[:, -self.room :], values[:, -self.room :]

    def answer(self, key, random):
        found = self.keys == key[:, None]
        return np.where(found.any(1), (self.values * found).sum(1), random.integers(self.half, size=len(key)))


class HashTable:
    """m buckets of b bits: a pair overwrites its key's bucket with the first bits of its value."""

    def __init__(self, buckets, value_bits, vocab, random):
        self.rest = (vocab // 2) >> value_bits
        self.hash = random.integers(buckets, size=vocab // 2)
        self.buckets, self.bits = buckets, buckets * value_bits

    def read(self, keys, values):
        self.table = np.zeros((len(keys), self.buckets), int)
        for key, value in zip(keys.T, values.T, strict=True):
            self.table[np.arange(len(key)), self.hash[key]] = value // self.rest

    def answer(self, key, random):
        read = self.table[np.arange(len(key)), self.hash[key]]
        return read * self.rest + random.integers(self.rest, size=len(key))


def accuracy(model, random, rows, n, vocab):
    keys, values = mqar(random, rows, n, vocab)
    model.read(keys, values)
    return np.mean([model.answer(key, random) == value for key, value in zip(keys.T, values.T, strict=True)])


ROWS = 2000
SLACK = math.sqrt(math.log(1e9) / (2 * ROWS))  # Hoeffding, once in a thousand million


@settings(max_examples=25)
@given(st.integers(1, 24), st.integers(3, 7), st.integers(1, 40), st.integers(0, 7), st.integers(0, 2**32 - 1))
def test_toy_recurrent_models_stay_on_their_side(n, log_values, room, value_bits, seed):
    random, vocab = np.random.default_rng(seed), 2 ** (log_values + 1)
    assume(n <= vocab // 2 - 1)
    hashed = HashTable(room, min(value_bits, log_values), vocab, random)
    for model in (Lossless(room, vocab), hashed):
        reached = accuracy(model, random, ROWS, n, vocab)
        assert reached <= accuracy_bound(model.bits, n, vocab) + SLACK
        assert bits_recalled(max(reached - SLACK, 0), n, vocab) <= model.bits + 1e-9
    if room >= n:
        whole = Lossless(n, vocab)
        assert accuracy(whole, random, 50, n, vocab) == 1
        assert bits_to_recall(n, vocab) <= whole.bits


def test_a_table_that_knows_the_keys_meets_the_bound():
    """One pair, no keys to tell apart: a table of b bits recalls 2^b / U, and no model more."""
    random = np.random.default_rng(0)
    for bits in range(7):
        reached = accuracy(HashTable(1, bits, 128, random), random, 20_000, 1, 128)
        assert accuracy_bound(bits, 1, 128) == pytest.approx(reached, abs=0.02)


def test_random_functions_suffice():
    """With `bits_sufficient` bits of random functions from keys to values, some function fits every map."""
    n, vocab = 2, 8
    states = math.ceil(2 ** float(bits_sufficient(n, vocab)))
    maps = [
        dict(zip(keys, values, strict=True))
        for keys in itertools.combinations(range(1, 4), n)
        for values in itertools.permutations(range(4), n)
    ]
    random = np.random.default_rng(0)
    tries = [random.integers(4, size=(states, 4)) for _ in range(50)]
    assert any(all((f[:, list(m)] == list(m.values())).all(1).any() for m in maps) for f in tries)


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="num_kv_pairs is 5"):
        accuracy_bound(8, 5, 8)
    with pytest.raises(ValueError, match="state_bits is -1"):
        accuracy_bound(-1, 2, 8)
    with pytest.raises(ValueError, match="accuracy is 2"):
        bits_recalled(2, 2, 8)


def test_efficiency_is_of_the_slice_that_proves_most(record, write):
    runs = load(
        write([record(seed=s, slices={4: 1.0, 16: a, 64: 0.0}, state_bytes=100) for s, a in enumerate((0.7, 0.9))])
    )
    (row,) = theory.recall_efficiency(at_best_learning_rate(runs)).to_dict("records")
    assert (row["num_kv_pairs"], row["seeds"], row["state.bits"]) == (16, 2, 800)
    assert row["bits_recalled"] == pytest.approx(bits_recalled(0.8, 16, 8192))
    assert row["recall_efficiency"] == pytest.approx(row["bits_recalled"] / 800)


def test_the_bound_of_a_study_is_the_mean_of_its_slices(record, write):
    runs = load(write([record(slices={4: 1.0, 16: 0.5}), record("mamba", slices={4: 1.0, 16: 0.4})]))
    expected = (accuracy_bound([10, 100], 4, 8192) + accuracy_bound([10, 100], 16, 8192)) / 2
    assert theory.study_bound(runs, [10, 100]).tolist() == pytest.approx(expected.tolist())
    other = load(write([record(slices={4: 1.0, 16: 0.5}), record("mamba", slices={4: 1.0})]))
    with pytest.raises(ValueError, match="2 different sets"):
        theory.study_bound(other, 10)
