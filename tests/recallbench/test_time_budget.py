"""A time budget is read as it is written, and ends before its time is up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.settings import SettingErrors
from recallbench import STARTED
from recallbench.interrupt import StopRequest, deadline
from recallbench.run import execution_of

UNITS = {"": 1, "s": 1, "min": 60, "h": 3600, "d": 86400}


def budget(written):
    return execution_of({"sweep": {"time_budget": written}}).sweep.time_budget


@given(
    number=st.one_of(st.integers(1, 10**6), st.floats(0.001, 10**6).map(lambda x: float(f"{x:.3f}"))),
    unit=st.sampled_from(sorted(UNITS)),
    space=st.sampled_from(["", " "]),
)
def test_a_number_and_a_unit_are_seconds(number, unit, space):
    assert budget(f"{number}{space}{unit}") == pytest.approx(number * UNITS[unit])
    assert budget(number) == pytest.approx(number)


@given(written=st.one_of(st.text(max_size=8), st.integers(max_value=0), st.floats(max_value=0), st.booleans()))
def test_anything_else_is_refused_in_a_sentence(written):
    try:
        seconds = budget(written)
    except SettingErrors as error:
        assert str(error).startswith(f"sweep.time_budget is {written!r}: it must be a time such as 90s, ")  # noqa: PT017
    else:
        assert isinstance(written, str)
        assert any(written.rstrip().endswith(unit) for unit in UNITS)
        assert seconds > 0


def test_no_budget_is_no_deadline():
    assert budget(None) is None
    assert deadline(None) is None
    assert not StopRequest().made


@given(seconds=st.floats(1, 10**6))
def test_there_is_time_to_save(seconds):
    stop = deadline(seconds) - STARTED
    assert 0.9 * seconds - 1e-6 <= stop < seconds
    assert seconds - stop <= 30 + 1e-6


def test_a_request_is_made_by_time_or_by_a_signal():
    assert StopRequest(STARTED).made
    assert StopRequest(STARTED).out_of_time
    later = StopRequest(deadline(1e9))
    assert not later.made
    later.ask(15)
    assert later.made
    assert not later.out_of_time
    assert later.signal == 15
