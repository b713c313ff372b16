"""What any recurrent model can recall of MQAR with so many bits of state.

n kv pairs a sequence; U values and the vocabulary's other half of keys. `docs/theory.md` derives each formula.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from pandas import DataFrame

from analysis.geometry import Floats
from analysis.records import by_slice


def num_values(vocab_size: ArrayLike) -> Floats:
    """U, the values of a vocabulary: its upper half."""
    size = np.asarray(vocab_size)
    return (size - size // 2).astype(float)


def bits_to_recall(num_kv_pairs: ArrayLike, vocab_size: ArrayLike) -> Floats:
    """The least bits of state that answer every query exactly: log2 U! / (U - n)!, the entropy of values given keys.

    **Raises** `ValueError` where the vocabulary has fewer values than pairs.
    """
    n, U = _sizes(num_kv_pairs, vocab_size)
    return _log2_arrangements(n, U)


def bits_of_map(num_kv_pairs: ArrayLike, vocab_size: ArrayLike) -> Floats:
    """The bits that tell every key-to-value map from every other: which keys there are, and their values.

    More than `bits_to_recall`, which a model need not exceed by much: it is only asked for keys that are there.
    """
    n, U = _sizes(num_kv_pairs, vocab_size)
    keys = np.asarray(vocab_size) // 2 - 1
    if np.any(n > keys):
        raise ValueError(f"num_kv_pairs {num_kv_pairs} needs as many keys, of which vocab_size {vocab_size} has {keys}")
    return _log2_arrangements(n, keys) - _log_gamma(n + 1) / np.log(2) + _log2_arrangements(n, U)


def bits_sufficient(num_kv_pairs: ArrayLike, vocab_size: ArrayLike) -> Floats:
    """Bits with which some model answers every query exactly: n log2 U + log2(1 + ln M) for M maps.

    So the bound of `bits_to_recall` is tight to within `bits_sufficient - bits_to_recall`.
    """
    n, U = _sizes(num_kv_pairs, vocab_size)
    return n * np.log2(U) + np.log2(1 + np.log(2) * bits_of_map(num_kv_pairs, vocab_size))


def bits_recalled(accuracy: ArrayLike, num_kv_pairs: ArrayLike, vocab_size: ArrayLike) -> Floats:
    """The least bits of state with which an expected accuracy can be reached: Fano's inequality over all queries.

    max(log2 n-arrangements of U - n (h(p) + p log2(U - 1)), log2(accuracy U)) with p = 1 - accuracy and h the binary
    entropy; 0 at chance, 1 / U, and below; `bits_to_recall` at accuracy 1. Increasing in accuracy. Broadcasts.
    """
    n, U = _sizes(num_kv_pairs, vocab_size)
    a = np.asarray(accuracy, float)
    if np.any((a < 0) | (a > 1)):
        raise ValueError(f"accuracy is {accuracy}, but it must be from 0 to 1")
    a = np.maximum(a, 1 / U)
    p = 1 - a
    unknown = n * (_binary_entropy(p) + p * np.log2(U - 1))
    return np.maximum(np.maximum(_log2_arrangements(n, U) - unknown, np.log2(a * U)), 0)


def accuracy_bound(state_bits: ArrayLike, num_kv_pairs: ArrayLike, vocab_size: ArrayLike) -> Floats:
    """The accuracy, 0..1, that no recurrent model with so many bits of state exceeds in expectation.

    The inverse of `bits_recalled`: chance, 1 / U, at no bits, 1 from `bits_to_recall` on, and never falling.
    Broadcasts. The bound of an accuracy over several slices is the mean of theirs: `study_bound`.
    """
    n, U = _sizes(num_kv_pairs, vocab_size)
    bits = np.asarray(state_bits, float)
    if np.any(~(bits >= 0)):
        raise ValueError(f"state_bits is {state_bits}, but it must be 0 or more")
    bits, n, U = np.broadcast_arrays(bits, n, U)
    low, high = 1 / U, np.ones(U.shape)
    for _ in range(60):
        middle = (low + high) / 2
        enough = bits_recalled(middle, n, 2 * U) <= bits
        low, high = np.where(enough, middle, low), np.where(enough, high, middle)
    return np.where(bits >= _log2_arrangements(n, U), 1.0, high)


def index_bits(num_kv_pairs: ArrayLike, error: ArrayLike) -> Floats:
    """Bits that INDEX needs in one message, n (1 - h(error)): the constant of the Omega(N) of the Based paper.

    Arora et al. 2024, Theorem 3.1. A weaker line than `bits_recalled`, which counts all U values, not two.
    """
    return np.asarray(num_kv_pairs) * (1 - _binary_entropy(np.minimum(np.asarray(error, float), 0.5)))


def study_bound(runs: DataFrame, state_bits: ArrayLike) -> Floats:
    """The bound of the overall accuracy of MQAR runs, whose slices one state serves: the mean over their examples.

    `runs` are those of `analysis.load`, all tested on the same slices. Returns an accuracy for each of `state_bits`.

    **Raises** `ValueError` where they are of another task, or tested on different slices.
    """
    columns = ["sequence_length", "num_kv_pairs", "examples", "task.vocab_size"]
    tested = _mqar(runs).loc[:, ["identity", *columns]]
    kinds = tested.groupby("identity")[columns].agg(tuple).drop_duplicates()
    if len(kinds) != 1:
        raise ValueError(f"the runs were tested on {len(kinds)} different sets of slices; a bound is of one")
    slices = tested.loc[tested["identity"] == kinds.index[0]]
    bits = np.asarray(state_bits, float)[..., None]
    bounds = accuracy_bound(bits, slices["num_kv_pairs"].to_numpy(), slices["task.vocab_size"].to_numpy())
    return np.average(bounds, axis=-1, weights=slices["examples"].to_numpy(float))


def recall_efficiency(runs: DataFrame) -> DataFrame:
    """Bits recalled per bit of state held, one row an architecture point.

    `runs` are those of `at_best_learning_rate`, MQAR. Of a point's slices, with their mean accuracies over seeds, the
    one counts that proves the most bits: one state serves them all.

    **Columns:** `point`, `family`, `label`; `state.bytes`, `state.bits`; `num_kv_pairs`, of the slice that counts;
    `accuracy` there; `bits_recalled`, at least; `recall_efficiency`, their ratio to `state.bits`, 0..1; `seeds`.

    **Raises** `ValueError` where runs are of another task.
    """
    place = ["point", "family", "label", "num_kv_pairs", "sequence_length"]
    slices = (
        _mqar(runs)
        .groupby(place, as_index=False)
        .agg(
            accuracy=("accuracy", "mean"),
            seeds=("accuracy", "count"),
            **{name: (name, "first") for name in ("state.bytes", "task.vocab_size")},
        )
    )
    recalled = bits_recalled(slices["accuracy"], slices["num_kv_pairs"], slices["task.vocab_size"])
    slices = slices.assign(**{"state.bits": 8 * slices["state.bytes"], "bits_recalled": recalled})
    best = slices.loc[slices.groupby("point")["bits_recalled"].idxmax()].reset_index(drop=True)
    best = best.assign(recall_efficiency=best["bits_recalled"] / best["state.bits"])
    columns = ["point", "family", "label", "state.bytes", "state.bits", "num_kv_pairs", "accuracy", "bits_recalled"]
    return best[[*columns, "recall_efficiency", "seeds"]]


def _mqar(runs: DataFrame) -> DataFrame:
    completed = runs.loc[runs["status"] == "completed"]
    others = set(completed["task.name"].dropna()) - {"mqar"} if "task.name" in completed else {"no task"}
    if others or completed.empty:
        raise ValueError(f"the bound is of completed runs of mqar, not of {', '.join(sorted(others)) or 'none'}")
    return by_slice(completed)


def _sizes(num_kv_pairs: ArrayLike, vocab_size: ArrayLike) -> tuple[Floats, Floats]:
    n, U = np.asarray(num_kv_pairs, float), num_values(vocab_size)
    if np.any((n < 1) | (n > U) | (U < 2)):
        raise ValueError(f"num_kv_pairs is {num_kv_pairs}, but it must be from 1 to the values of {vocab_size} tokens")
    return n, U


def _log2_arrangements(n: ArrayLike, of: ArrayLike) -> Floats:
    """log2 of[n] = log2 of! / (of - n)!, the ways to draw n in order without replacement."""
    n, of = np.asarray(n, float), np.asarray(of, float)
    return (_log_gamma(of + 1) - _log_gamma(of - n + 1)) / np.log(2)


_log_gamma = np.vectorize(math.lgamma, otypes=[float])


def _binary_entropy(p: ArrayLike) -> Floats:
    p = np.asarray(p, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.nan_to_num(p * np.log2(p)) - np.nan_to_num((1 - p) * np.log2(1 - p))
