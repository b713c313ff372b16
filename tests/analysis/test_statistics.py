"""Hypervolume, attainment, dominance and matched quality against direct loops over seeds and places."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas import DataFrame

from analysis import attainment, dominance, hypervolume, matched_quality, sentences

BOX = {"state.bytes": (2.0**10, 1.0), "accuracy": (0.0, 1.0)}
point = st.tuples(st.integers(0, 10), st.sampled_from([0, 0.25, 0.5, 0.75, 1]))


def table(rows, **columns):
    """Rows (point, seed, log2 of bytes, accuracy)."""
    made = DataFrame(rows, columns=["point", "seed", "state.bytes", "accuracy"]).astype({"accuracy": float})
    return made.assign(**{"state.bytes": 2.0 ** made["state.bytes"]}, **columns)


@st.composite
def studies(draw, families=("a", "b")):
    """Two families of a few points, one to four seeds each."""
    rows = []
    for number, family in enumerate(families):
        for p in range(draw(st.integers(1, 4))):
            size = draw(st.integers(0, 10))
            for seed in range(draw(st.integers(1, 4))):
                rows.append((10 * number + p, seed, size, draw(point)[1], family))
    return table([row[:4] for row in rows], family=[row[4] for row in rows])


@settings(max_examples=15)
@given(studies())
def test_hypervolume_is_the_mean_of_the_best_accuracy_over_log_bytes(runs):
    means = runs.groupby("point")[["state.bytes", "accuracy"]].mean()
    middles = 2 ** (np.arange(10) + 0.5)
    best = [means.loc[means["state.bytes"] <= budget, "accuracy"].max() for budget in middles]
    (row,) = hypervolume(runs, BOX, resamples=20).to_dict("records")
    assert row["hypervolume"] == pytest.approx(np.nan_to_num(best).mean(), abs=1e-9)
    assert row["points"] == len(means)
    if runs.groupby("point").size().max() == 1:
        assert math.isnan(row["hypervolume_low"])
    else:
        assert 0 <= row["hypervolume_low"] <= row["hypervolume_high"] <= 1


def test_the_bootstrap_enumerates_what_seeds_can_say():
    runs = table([(0, 0, 0, 0.2), (0, 1, 0, 0.4), (0, 2, 0, 0.9)])
    possible = [np.mean(drawn) for drawn in itertools.product([0.2, 0.4, 0.9], repeat=3)]
    (row,) = hypervolume(runs, BOX, resamples=2000, level=0.8).to_dict("records")
    low, high = np.quantile(possible, [0.1, 0.9], method="inverted_cdf")
    assert (row["hypervolume_low"], row["hypervolume_high"]) == (pytest.approx(low), pytest.approx(high))
    assert row["seeds"] == 3


def test_a_point_with_one_seed_is_not_resampled_and_is_counted():
    runs = table([(0, 0, 0, 0.2), (0, 1, 0, 0.4), (1, 0, 5, 0.9)], family=["a", "a", "b"])
    first, second = hypervolume(runs, BOX, by="family").to_dict("records")
    assert (first["family"], first["seeds"], second["seeds"]) == ("a", 2, 1)
    assert math.isnan(second["hypervolume_high"])


@pytest.mark.parametrize("box", [{"accuracy": (0, 1)}, {**BOX, "accuracy": (1, 0)}, {**BOX, "state.bytes": (1024, 0)}])
def test_a_box_that_is_none_is_said(box):
    with pytest.raises(ValueError, match="the box"):
        hypervolume(table([(0, 0, 0, 0.2)]), box)


@settings(max_examples=15)
@given(studies(), st.sampled_from([10.0, 30.0, 50.0, 90.0, 100.0]))
def test_a_place_is_in_the_surface_if_enough_seeds_attain_it(runs, level):
    corners = attainment(runs, levels=[level])
    seeds = [of_seed for _, of_seed in runs.groupby("seed")]
    for budget, quality in itertools.product(2.0 ** np.arange(11), [0, 0.25, 0.5, 0.75, 1]):

        def reached(found, budget=budget, quality=quality):
            return ((found["state.bytes"] <= budget) & (found["accuracy"] >= quality)).any()

        attained = sum(reached(of_seed) for of_seed in seeds)
        assert reached(corners) == (100 * attained >= level * len(seeds))
    assert set(corners["seeds"]) <= {len(seeds)}


def test_attainment_by_group_in_units_of_the_columns():
    runs = table([(0, 0, 0, 0.2), (0, 1, 0, 0.4), (1, 0, 5, 0.9)], family=["a", "a", "b"])
    found = attainment(runs, by="family", levels=(50, 100))
    assert found.to_numpy().tolist() == [
        ["a", 50, 2, 1.0, 0.4],
        ["a", 100, 2, 1.0, 0.2],
        ["b", 50, 1, 32.0, 0.9],
        ["b", 100, 1, 32.0, 0.9],
    ]
    with pytest.raises(ValueError, match="per cents"):
        attainment(runs, levels=(0,))


@settings(max_examples=15)
@given(studies(), st.sampled_from([0.3, 0.5, 0.9, 1.0]))
def test_dominance_against_a_loop_over_budgets_and_seeds(runs, share):
    found = dominance(runs, share=share)
    counts = [of["seed"].value_counts() for _, of in runs.groupby("family")]
    common = set.intersection(*({*count.index[count == count.max()]} for count in counts))

    def offer(family, seed, budget):
        of = runs[(runs["family"] == family) & (runs["seed"] == seed) & (runs["state.bytes"] <= budget)]
        return of["accuracy"].max()

    budgets = sorted(runs["state.bytes"].unique())
    for winner, loser in (("a", "b"), ("b", "a")):
        rows = found[(found["winner"] == winner) & (found["loser"] == loser)]
        for budget in budgets:
            ahead = [offer(winner, seed, budget) - offer(loser, seed, budget) for seed in common]
            won = (
                bool(common) and not any(map(math.isnan, ahead)) and sum(gap > 0 for gap in ahead) >= share * len(ahead)
            )
            inside = (rows["low"] <= budget) & (budget < rows["high"])
            assert inside.any() == won
    assert (found["gap"] >= 0).all() or share < 1


def test_a_seed_that_lacks_points_of_a_group_does_not_speak_against_it():
    runs = table([(0, 0, 1, 0.5), (1, 0, 1, 0.2), (2, 0, 2, 0.9), (1, 1, 1, 0.2), (0, 1, 1, 0.5)], family=[*"abbba"])
    (_, row) = dominance(runs).to_dict("records")
    assert (row["winner"], row["low"], row["seeds"], row["share"]) == ("b", 4, 1, 1)


def test_a_sentence_for_each_range():
    runs = table(
        [(0, s, 1, 0.5) for s in range(2)] + [(1, s, 1, 0.4) for s in range(2)] + [(2, s, 3, 0.9) for s in range(2)],
        family=["a", "a", "b", "b", "b", "b"],
    )
    assert sentences(dominance(runs), lambda size: f"{size:g} B") == [
        "a dominates b at 100% of 2 seeds between 2 B and 8 B",
        "b dominates a at 100% of 2 seeds from 8 B on",
    ]


def test_matched_quality_is_read_between_frontier_points_over_log_bytes():
    rows = [(0, 0, 2, 0.2), (1, 0, 4, 0.1), (2, 0, 6, 0.6), (3, 0, 8, 0.6), (4, 0, 9, 1.0)]
    (row,) = matched_quality(table(rows, family="a"), 0.5).to_dict("records")
    assert row["state.bytes"] == pytest.approx(2 ** (2 + 4 * 0.75))
    assert row["state.bytes_measured"] == 2**6
    assert not row["bound"]
    assert math.isnan(row["state.bytes_low"])
    (row,) = matched_quality(table(rows, family="a"), 0.8).to_dict("records")
    assert row["state.bytes"] == pytest.approx(2 ** (6 + 3 * 0.5))
    (row,) = matched_quality(table(rows, family="a"), 0.1).to_dict("records")
    assert (row["state.bytes"], row["bound"]) == (4, True)
    (row,) = matched_quality(table(rows[:4], family="a"), 0.9).to_dict("records")
    assert math.isinf(row["state.bytes"])


@settings(max_examples=15)
@given(studies(), st.floats(0.01, 1))
def test_matched_quality_is_monotone_and_bracketed(runs, target):
    for row in matched_quality(runs, target, resamples=30).to_dict("records"):
        assert row["state.bytes"] <= row["state.bytes_measured"] * (1 + 1e-12)
        harder = matched_quality(runs[runs["family"] == row["family"]], min(1.0, target + 0.1), resamples=1)
        assert harder["state.bytes"].iloc[0] >= row["state.bytes"] * (1 - 1e-12)
        if not math.isnan(row["reached"]):
            assert row["state.bytes_low"] <= row["state.bytes_high"]
            assert 0 <= row["reached"] <= 1
