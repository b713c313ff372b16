"""The search for the largest batch that fits."""

import math

from hypothesis import given
from hypothesis import strategies as st

from recallbench.throughput.largest import largest, near


@given(limit=st.integers(0, 10**6))
def test_the_largest_that_fits_is_found_to_an_eighth(limit):
    tried = []

    def fits(n):
        tried.append(n)
        return n <= limit

    found = largest(fits)
    assert found <= limit <= max(found + 1, found * 9 / 8) or found == limit == 0
    assert len(tried) == len(set(tried)) <= 2 + math.log2(limit + 1) + 3


@given(limit=st.integers(0, 10**4), guess=st.integers(0, 10**4))
def test_from_a_guess_it_is_found_as_near(limit, guess):
    tried = []

    def fits(n):
        tried.append(n)
        return n <= limit

    found = near(guess, fits)
    assert found <= limit <= max(found + 1, found * 9 / 8) or found == 0 == min(limit, guess)
    assert len(tried) == len(set(tried))
    if limit >= 8 and limit * 8 / 9 <= guess <= limit * 9 / 8:
        assert len(tried) <= 3
