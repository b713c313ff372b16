"""The tasks with one axis, each against its definition, read off one row at a time, left to right."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recallbench.__main__ import CONFIGURATION
from recallbench.draws import ROWS
from recallbench.task import IGNORED
from recallbench.tasks import TASKS
from recallbench.tasks.ngram_copy import continuations

REJECT = 1e-6
"""The p-value under which a distribution is taken for wrong; seeds are fixed, so a test that passes goes on passing."""


# What a reader of the row would answer, and where: position -> answer.


def read_overwritten_recall(row, task):
    def is_key(token):
        return 1 <= token < task.vocab_size // 2

    memory, answers = {}, {}
    for i, token in enumerate(row):
        if is_key(token):
            follower = row[i + 1] if i + 1 < len(row) else 0
            if follower >= task.vocab_size // 2:
                memory[token] = follower
            else:
                answers[i] = memory[token]
        else:
            assert token == 0 or is_key(row[i - 1])
    return answers


def read_two_hop(row, task, hops):
    leads, asked = {}, []
    for i, token in enumerate(row):
        if token and row[i - 1] == 0:  # row[-1] is no pair's: the first token of a row is blank
            follower = row[i + 1] if i + 1 < len(row) else 0
            if follower:
                assert token not in leads
                leads[token] = follower
            else:
                asked.append(i)
    answers = {}
    for i in asked:
        token, steps = row[i], 0
        while token in leads:
            token, steps = leads[token], steps + 1
        assert steps == hops
        answers[i] = token
    return answers


def read_ngram_copy(row, task, n):
    followed, answers = {}, {}
    for i in range(len(row)):
        if i >= n:
            followed.setdefault(tuple(row[i - n : i]), set()).add(row[i])
        if i >= n - 1 and len(found := followed.get(tuple(row[i - n + 1 : i + 1]), ())) == 1:
            (answers[i],) = found
    return answers


def read_noisy_recall(row, task):
    third, k, v = task.vocab_size // 3, task.key_tokens, task.value_tokens
    memory, answers, i = {}, {}, 0
    while i < len(row):
        if row[i] < third:
            i += 1
            continue
        key, value = tuple(row[i : i + k]), row[i + k : i + k + v]
        assert len(value) == v
        assert all(third <= token < 2 * third for token in key)
        assert all(2 * third <= token for token in value)
        if key in memory:
            answers |= {i + k - 1 + j: memory[key][j] for j in range(v)}
            assert memory[key] == value
        memory.setdefault(key, value)
        i += k + v
    return answers


def read_needle(row, task):
    third, memory = task.vocab_size // 3, {}
    for token, follower in itertools.pairwise(row):
        if third <= token < 2 * third:
            assert follower >= 2 * third
            assert token not in memory
            memory[token] = follower
    return {len(row) - 1: memory[row[-1]]}


# Settings with room to spare or none: (settings, values of the axis).


@st.composite
def overwritten_recall(draw):
    keys, further, spare = draw(st.integers(1, 6)), draw(st.integers(0, 10)), draw(st.integers(0, 9))
    most = keys + further
    bindings = draw(st.lists(st.integers(keys, most), min_size=1, max_size=3, unique=True))
    vocab_size = max(2 * keys + 2, 2 * most - 1) + draw(st.integers(0, 20))
    shape = {"vocab_size": vocab_size, "sequence_length": 2 * most + keys + spare, "num_kv_pairs": keys}
    return shape, bindings


@st.composite
def two_hop(draw):
    hops = draw(st.sampled_from([[1], [2], [1, 2], [3], [3, 1], [6], [2, 3]]))
    pairs = int(np.lcm.reduce(hops)) * draw(st.integers(1, 3))
    N = max(3 * pairs + 2 * pairs // h for h in hops) + draw(st.integers(0, 9))
    vocab_size = max(pairs // h * (h + 1) for h in hops) + 1 + draw(st.integers(0, 40))
    return {"vocab_size": vocab_size, "sequence_length": N, "num_kv_pairs": pairs}, hops


@st.composite
def ngram_copy(draw):
    span = draw(st.integers(2, 7))
    orders = draw(st.lists(st.integers(1, span - 1), min_size=1, max_size=3, unique=True))
    N = 2 * span + draw(st.integers(0, 25))
    return {"vocab_size": draw(st.sampled_from([2, 3, 5, 8, 30, 1000])), "sequence_length": N, "span": span}, orders


@st.composite
def noisy_recall(draw):
    k, v = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    vocab_size = draw(st.integers(6, 40))
    most = min((vocab_size // 3) ** k, (vocab_size // 3) ** v, 6)
    pairs = draw(st.lists(st.integers(1, most), min_size=1, max_size=3, unique=True))
    N = 2 * max(pairs) * (k + v) + draw(st.integers(0, 20))
    noise = draw(st.sampled_from([0.0, 0.3, 1.0]))
    shape = {"vocab_size": vocab_size, "sequence_length": N, "key_tokens": k, "value_tokens": v, "noise": noise}
    return shape, pairs


@st.composite
def needle(draw):
    count, width = draw(st.integers(1, 5)), draw(st.sampled_from([25, 30, 100]))
    N = max(2 * count + 6, 7) + draw(st.integers(0, 40))
    depths = draw(st.lists(st.integers(0, 100 - width), min_size=1, max_size=3, unique=True))
    vocab_size = 3 * count + draw(st.integers(0, 40))
    return {"vocab_size": vocab_size, "sequence_length": N, "num_needles": count, "depth_range": width}, depths


SHAPES = {
    "overwritten_recall": overwritten_recall(),
    "two_hop": two_hop(),
    "ngram_copy": ngram_copy(),
    "noisy_recall": noisy_recall(),
    "needle": needle(),
}
READ = {
    "overwritten_recall": lambda row, task, value: read_overwritten_recall(row, task),
    "two_hop": read_two_hop,
    "ngram_copy": read_ngram_copy,
    "noisy_recall": lambda row, task, value: read_noisy_recall(row, task),
    "needle": lambda row, task, value: read_needle(row, task),
}


def made(name, shape, values, n=500, seed=0, split="test"):
    """The task and its slices."""
    axis = TASKS[name].axis
    task = TASKS[name](**shape, **{axis: tuple(values)}, num_examples=n, num_test_examples=n, seed=seed)
    return task, task.examples(split, "cpu")


@pytest.mark.parametrize("name", SHAPES)
def test_a_reader_of_the_row_finds_the_questions_and_the_answers(name):
    @settings(max_examples=60, derandomize=True)
    @given(drawn=SHAPES[name], n=st.integers(1, 6), seed=st.integers(0, 2**40))
    def holds(drawn, n, seed):
        shape, values = drawn
        task, slices = made(name, shape, values, n, seed)
        assert [found.slice[task.axis] for found in slices] == list(values)
        for found, value in zip(slices, values, strict=True):
            assert found.slice == {"sequence_length": task.sequence_length, task.axis: value}
            assert found.tokens.shape == (n, shape["sequence_length"])
            assert 0 <= found.tokens.min() <= found.tokens.max() < task.vocab_size
            for row, labels in zip(found.tokens.tolist(), found.labels().tolist(), strict=True):
                told = {i: label for i, label in enumerate(labels) if label != IGNORED}
                assert told == READ[name](row, task, value)
                assert told

    holds()


@pytest.mark.parametrize("name", SHAPES)
def test_the_defaults_are_read_alike(name):
    task = TASKS[name](num_examples=30, num_test_examples=30)
    for split in ("train", "validation", "test"):
        for found in task.examples(split, "cpu"):
            for row, labels in zip(found.tokens.tolist(), found.labels().tolist(), strict=True):
                told = {i: label for i, label in enumerate(labels) if label != IGNORED}
                assert told == READ[name](row, task, found.slice[task.axis])


# Each task holds what it says it holds.


@settings(max_examples=60, derandomize=True)
@given(drawn=SHAPES["overwritten_recall"])
def test_every_key_is_bound_and_no_value_comes_twice(drawn):
    shape, values = drawn
    task, slices = made("overwritten_recall", shape, values, 5)
    for found, bindings in zip(slices, values, strict=True):
        opening, rest = found.tokens[:, : 2 * bindings], found.tokens[:, 2 * bindings :]
        for row, after in zip(opening.tolist(), rest.tolist(), strict=True):
            keys = row[0::2]
            assert len(set(keys)) == task.num_kv_pairs
            assert len(set(row[1::2])) == bindings
            assert sorted(token for token in after if token) == sorted(set(keys))


def test_bindings_are_shuffled_over_time():
    """Of two keys and three bindings, each way to bind one key twice is equally likely, and so is each key."""
    shape = {"vocab_size": 6, "sequence_length": 8, "num_kv_pairs": 2}
    _, (found,) = made("overwritten_recall", shape, [3], 60_000)
    bound = found.tokens[:, 0:6:2] - 1  # keys 1 and 2
    counts = (bound * torch.tensor([4, 2, 1])).sum(1).bincount(minlength=8)
    assert counts[0] == counts[7] == 0
    assert stats.chisquare(counts[1:7].numpy()).pvalue > REJECT


@settings(max_examples=60, derandomize=True)
@given(drawn=SHAPES["noisy_recall"])
def test_pairs_are_whole_and_noise_is_between_them(drawn):
    shape, values = drawn
    task, slices = made("noisy_recall", shape, values, 5)
    third = task.vocab_size // 3
    for found, pairs in zip(slices, values, strict=True):
        between = found.tokens[found.tokens < third]
        assert len(between) == 5 * (shape["sequence_length"] - 2 * pairs * (task.key_tokens + task.value_tokens))
        if shape["noise"] == 0:
            assert (between == 0).all()
        if shape["noise"] == 1:
            assert (between > 0).all()
        letters = (found.tokens >= third) & (found.tokens < 2 * third)
        assert (letters.sum(1) == 2 * pairs * task.key_tokens).all()


def test_the_share_of_noise_is_as_asked():
    _, (found,) = made("noisy_recall", {"noise": 0.2, "sequence_length": 64}, [1])
    between = found.tokens[found.tokens < 21]
    assert (between > 0).double().mean().item() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(("count", "N"), [(1, 40), (3, 30)])
def test_needles_lie_uniformly_in_their_range_of_depth(count, N):
    shape = {"vocab_size": 60, "sequence_length": N, "num_needles": count, "depth_range": 50}
    _, slices = made("needle", shape, [0, 25, 50], 20_000)
    places = N - 1 - count
    for found, depth in zip(slices, [0, 25, 50], strict=True):
        starts = (found.tokens[:, :-1] == found.tokens[:, -1:]).int().argmax(1)
        is_key = (found.tokens >= 20) & (found.tokens < 40)
        earlier = (is_key.cumsum(1) - is_key.int()).gather(1, starts[:, None])[:, 0]
        counts = (starts - earlier).bincount(minlength=places).numpy()
        inside = [p for p in range(places) if depth <= 100 * p / places < depth + 50]
        assert counts.sum() == counts[inside].sum()
        assert stats.chisquare(counts[inside]).pvalue > REJECT


def test_the_ranges_of_depth_together_are_all_places():
    task = TASKS["needle"](sequence_length=38)
    places = [place for depth in task.train for place in task.at_depth(depth)]
    assert places == list(range(36))


# No answer without the work: what a shortcut would give, and how seldom it is right.


def accuracy(found, guess):
    """`guess`: (row, position) -> answer."""
    right = [
        guess(row, position) == target
        for row, positions, targets in zip(*map(torch.Tensor.tolist, found[:3]), strict=True)
        for position, target in zip(positions, targets, strict=True)
        if target != IGNORED
    ]
    return sum(right) / len(right)


def at_first(row, position):
    return row[row.index(row[position]) + 1]


def test_overwritten_keys_are_not_told_by_their_first_value_nor_by_the_last_pair():
    shape = {"vocab_size": 512, "sequence_length": 64, "num_kv_pairs": 4}
    _, slices = made("overwritten_recall", shape, [4, 12, 24], 2000)
    for found, bindings in zip(slices, [4, 12, 24], strict=True):
        unchanged = (1 - 1 / 4) ** (bindings - 4)  # a key that no further binding fell on
        assert accuracy(found, at_first) == pytest.approx(unchanged, abs=0.02)
        assert accuracy(found, lambda row, _, end=2 * bindings: row[end - 1]) == 1 / 4
        assert found.positions.min() >= 2 * bindings
        answered = found.targets.gather(1, found.positions.argsort(1))  # by the order of the questions
        last_pair = found.tokens[:, 2 * bindings - 1 : 2 * bindings]
        assert stats.chisquare((answered == last_pair).sum(0).numpy()).pvalue > REJECT  # in which it means nothing


def test_the_end_of_a_chain_stands_nowhere_beside_its_beginning():
    _, (one, two, three) = made("two_hop", {"vocab_size": 256}, [1, 2, 3])
    assert accuracy(one, at_first) == 1
    for found, hops in ((two, 2), (three, 3)):
        chains = 12 // hops
        assert accuracy(found, at_first) == 0
        for row, positions, targets in zip(*map(torch.Tensor.tolist, found[:3]), strict=True):
            for position, target in zip(positions, targets, strict=True):
                places = [i for i, token in enumerate(row) if token == row[position]]
                assert all(abs(row.index(target) - place) > 1 for place in places)
        # The ends are known from the text, as what no pair begins with; which of them is not.
        assert accuracy(found, lambda row, _: row[35]) <= 1 / chains
        ends = found.targets[:, 0:1]
        assert ((found.targets == ends).sum(1) == 1).all()


def test_the_second_pair_of_a_chain_stands_before_the_first_as_often_as_after():
    _, (found,) = made("two_hop", {"vocab_size": 256}, [2], 4000)
    before = 0
    for row, positions, targets in zip(*map(torch.Tensor.tolist, found[:3]), strict=True):
        before += row.index(targets[0]) < row.index(row[positions[0]])
    assert stats.binomtest(before, 4000).pvalue > REJECT


def test_ngrams_return_at_no_fixed_distance_and_need_all_their_tokens():
    shape = {"vocab_size": 16, "sequence_length": 96, "span": 8}
    _, (one, two, three) = made("ngram_copy", shape, [1, 2, 3], 300)

    def as_last_token_did(row, position):
        before = [i for i in range(position) if row[i] == row[position]]
        return row[before[-1] + 1]

    assert accuracy(one, as_last_token_did) == 1
    assert accuracy(two, as_last_token_did) < 0.6
    assert accuracy(three, as_last_token_did) < 0.6
    for found in (two, three):
        at_distance = [
            accuracy(found, lambda row, p, d=d: row[p + 1 - d] if p + 1 >= d else None) for d in range(1, 96)
        ]
        assert max(at_distance) < 0.2


def test_most_of_what_is_copied_is_asked():
    _, slices = made("ngram_copy", {}, [1, 2, 3], 300)
    asked = [(found.targets != IGNORED).sum(1).double().mean().item() for found in slices]
    assert asked[1] > 20
    assert asked[2] > 20


def test_all_tokens_of_a_key_and_of_a_value_are_needed():
    _, (found,) = made("noisy_recall", {"vocab_size": 18, "sequence_length": 96}, [8], 500)

    def as_last_token_did(row, position):
        return row[row.index(row[position]) + 1]

    assert accuracy(found, as_last_token_did) < 0.5
    asked_in_turn = found.targets.view(500, 8, 2)[:, :, 0]
    order_of_pairs = [[t for t in row if t >= 12][0:16:2] for row in found.tokens.tolist()]
    same_place = (torch.tensor(order_of_pairs) == asked_in_turn).double().mean().item()
    assert same_place < 0.35  # 1/8 by the shuffled order, and 7/8 of 1/6 by chance


def test_any_of_several_needles_may_be_asked():
    shape = {"vocab_size": 300, "sequence_length": 64, "num_needles": 4, "depth_range": 100}
    _, (found,) = made("needle", shape, [0], 20_000)
    keys = (found.tokens[:, :-1] >= 100) & (found.tokens[:, :-1] < 200)
    asked = found.tokens[:, :-1] == found.tokens[:, -1:]
    rank = (keys.cumsum(1) * asked).amax(1) - 1
    assert stats.chisquare(rank.bincount(minlength=4).numpy()).pvalue > REJECT


# What all of them share.


@pytest.mark.parametrize("name", SHAPES)
def test_a_slice_is_the_same_whatever_stands_beside_it(name):
    values = TASKS[name]().train
    _, together = made(name, {}, values, 20)
    for found, value in zip(together, values, strict=True):
        _, (alone,) = made(name, {}, [value], 20)
        assert torch.equal(found.tokens, alone.tokens)
        assert torch.equal(found.labels(), alone.labels())


@pytest.mark.parametrize("name", SHAPES)
def test_seeds_splits_and_slices_differ(name):
    values = TASKS[name]().train
    slices = [found for seed in (0, 1) for found in made(name, {}, values, 20, seed)[1]]
    slices += [found for split in ("train", "validation") for found in made(name, {}, values, 20, 0, split)[1]]
    assert len({tuple(found.tokens.flatten().tolist()) for found in slices}) == len(slices) == 4 * len(values)


@pytest.mark.parametrize("name", SHAPES)
def test_rows_made_in_several_rounds_are_all_different(name):
    _, slices = made(name, {}, TASKS[name]().train[-1:], ROWS + 500)
    assert len(slices[0].tokens.unique(dim=0)) == ROWS + 500


@pytest.mark.parametrize("name", SHAPES)
def test_validation_and_test_may_have_values_of_their_own(name):
    values, axis = TASKS[name]().train, TASKS[name].axis
    task = TASKS[name](**{axis: values[:1], f"test_{axis}": values[1:]}, num_examples=3, num_test_examples=2)
    sizes = {split: [(e.slice[axis], len(e)) for e in task.examples(split, "cpu")] for split in ("train", "test")}
    assert sizes == {"train": [(values[0], 3)], "test": [(value, 2) for value in values[1:]]}


def test_continuations_by_hand():
    row = torch.tensor([[1, 2, 1, 3, 1, 2, 1, 2, 2, 2, 2]])
    found = {n: continuations(row, n, vocab_size=4)[0].tolist() for n in (1, 2, 3)}
    none = IGNORED
    # 1 leads to 2, then to 3; 2 to 1, to 1, then to 2; 3 to 1
    assert found[1] == [none, 2, none, none, 1, none, 1, none, none, none]
    assert found[2] == [none, none, none, 1, 3, 1, none, 2, 2]
    assert found[3] == [none, none, none, 3, none, none, none, 2]


EXAMPLES = {
    "overwritten_recall": ({"vocab_size": 16, "sequence_length": 14, "num_kv_pairs": 2}, 4),
    "two_hop": ({"vocab_size": 16, "sequence_length": 18, "num_kv_pairs": 4}, 2),
    "ngram_copy": ({"vocab_size": 4, "sequence_length": 16, "span": 4}, 2),
    "noisy_recall": ({"vocab_size": 18, "sequence_length": 20}, 2),
    "needle": ({"vocab_size": 24, "sequence_length": 14, "num_needles": 2, "depth_range": 50}, 50),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_the_guide_has_the_right_answers(name):
    shape, value = EXAMPLES[name]
    task, _ = made(name, shape, [value])
    section = (CONFIGURATION.parent / "docs" / "tasks.md").read_text().split(f"\n## {name}\n")[1]
    lines = section.split("```text\n")[1].splitlines()
    tokens, answers = ([None if word == "." else int(word) for word in line.split()[1:]] for line in lines[:2])
    assert len(tokens) == shape["sequence_length"]
    assert READ[name](tokens, task, value) == {i: answer for i, answer in enumerate(answers) if answer is not None}
