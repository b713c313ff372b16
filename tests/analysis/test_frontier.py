"""The Pareto frontier against its definition."""

import math

from hypothesis import given
from hypothesis import strategies as st
from pandas import DataFrame

from analysis import frontier

numbers = st.sampled_from([math.nan, -math.inf, 0.0, 1.0, 2.0, 3.0, math.inf]) | st.floats()


def is_beaten(point, others):
    return any((c <= point[0] and q >= point[1]) and (c < point[0] or q > point[1]) for c, q in others)


@given(st.lists(st.tuples(numbers, numbers), max_size=30))
def test_the_frontier_is_what_nothing_beats(values):
    table = DataFrame(values, columns=["cost", "quality"], dtype=float)
    table.index = [f"row {i}" for i in range(len(table))]
    expected = [not any(map(math.isnan, point)) and not is_beaten(point, values) for point in values]
    on = frontier(table, "cost", "quality")
    assert on.dtype == bool
    assert on.tolist() == expected
    assert on.index.equals(table.index)


def test_equal_points_stand_together():
    table = DataFrame({"state.bytes": [4, 4, 4, 8, 8], "accuracy": [0.5, 0.5, 0.4, 0.5, 0.6]})
    assert frontier(table).tolist() == [True, True, False, False, True]
