"""The Pareto frontier against its definition."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pandas import DataFrame

from analysis import frontier

numbers = st.sampled_from([math.nan, -math.inf, 0.0, 1.0, 2.0, 3.0, math.inf]) | st.floats()


def is_beaten(point, others):
    """Whether another point is no worse in all and better in one; the last coordinate is better with more."""
    return any(
        all(a <= b for a, b in zip(other[:-1], point[:-1], strict=True))
        and other[-1] >= point[-1]
        and (other[:-1] != point[:-1] or other[-1] > point[-1])
        for other in others
    )


@given(st.lists(st.tuples(numbers, numbers), max_size=30))
def test_the_frontier_is_what_nothing_beats(values):
    table = DataFrame(values, columns=["cost", "quality"], dtype=float)
    table.index = [f"row {i}" for i in range(len(table))]
    expected = [not any(map(math.isnan, point)) and not is_beaten(point, values) for point in values]
    on = frontier(table, "cost", "quality")
    assert on.dtype == bool
    assert on.tolist() == expected
    assert on.index.equals(table.index)


@given(st.lists(st.tuples(numbers, numbers, numbers, st.sampled_from(["a", "b", None])), max_size=20))
def test_three_columns_and_a_frontier_for_each_group(rows):
    table = DataFrame([(a, -b, c, g) for a, b, c, g in rows], columns=["x.bytes", "tokens_per_second", "accuracy", "g"])
    table = table.astype({"x.bytes": float, "tokens_per_second": float, "accuracy": float})
    known = [row for row in rows if not any(map(math.isnan, row[:3]))]
    expected = [
        row in known and not is_beaten(row[:3], [other[:3] for other in known if other[3] == row[3]]) for row in rows
    ]
    cost, quality = ["x.bytes", "tokens_per_second"], "accuracy"
    assert frontier(table, cost, quality, by="g").tolist() == expected


def test_equal_points_stand_together():
    table = DataFrame({"state.bytes": [4, 4, 4, 8, 8], "accuracy": [0.5, 0.5, 0.4, 0.5, 0.6]})
    assert frontier(table).tolist() == [True, True, False, False, True]


def test_the_name_says_which_way_is_better_unless_told_otherwise():
    table = DataFrame({"state.bytes": [1, 2, 3], "ar_perplexity": [3.0, 2.0, 2.5]})
    assert frontier(table, quality="ar_perplexity").tolist() == [True, True, False]
    assert frontier(table, quality="ar_perplexity", better={"ar_perplexity": "more"}).tolist() == [True, False, False]


def test_what_is_no_column_of_numbers_is_said_with_those_that_are():
    table = DataFrame({"state.bytes": [1], "accuracy": [0.5], "family": ["based"]})
    with pytest.raises(ValueError, match=r"'perplexity' is not there; columns of numbers are state.bytes, accuracy"):
        frontier(table, quality="perplexity")
    with pytest.raises(ValueError, match="'family' holds no numbers"):
        frontier(table, quality="family")
    with pytest.raises(ValueError, match="two or three different columns"):
        frontier(table, quality="state.bytes")
    with pytest.raises(ValueError, match="'less' or 'more'"):
        frontier(table, better={"accuracy": "up"})


def test_a_hundred_thousand_points():
    random = np.random.default_rng(0)
    table = DataFrame(random.random((100_000, 3)), columns=["state.bytes", "cost.seconds", "accuracy"])
    on = frontier(table, ["state.bytes", "cost.seconds"])
    best = table[on].to_numpy() * [1, 1, -1]
    assert all((best <= point).all(1).any() for point in table.sample(200, random_state=0).to_numpy() * [1, 1, -1])
