"""Settings are checked against a constructor's signature before anything is built."""

from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Len
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, PositiveFloat, PositiveInt

from models.settings import SettingError, SettingErrors, check, construct, schema


class Window:
    """Something to construct."""

    def __init__(
        self,
        width: PositiveInt,
        rate: PositiveFloat = 0.5,
        heads: Annotated[int, Ge(2)] | None = None,
        kind: Literal["full", "half"] = "full",
        causal: bool = True,
        sizes: Annotated[list[int], Len(1)] = [1],  # noqa: B006 - never changed
    ):
        if heads is not None and width % heads:
            raise SettingError("heads", heads, f"it must divide width = {width}")
        self.all = (width, rate, heads, kind, causal, sizes)


def test_settings_reach_the_constructor():
    assert construct(Window, {"width": 4}).all == (4, 0.5, None, "full", True, [1])
    given_all = {"width": 4, "rate": 1, "heads": 2, "kind": "half", "causal": False, "sizes": [3, 4]}
    assert construct(Window, given_all).all == (4, 1.0, 2, "half", False, [3, 4])


@pytest.mark.parametrize(
    ("settings_given", "sentence"),
    [
        ({}, "width is None: it must be given"),
        ({"width": 0}, "width is 0: it should be greater than 0"),
        ({"width": 4.0}, "width is 4.0: it should be a valid integer"),
        ({"width": "4"}, "width is '4': it should be a valid integer"),
        ({"width": True}, "width is True: it should be a valid integer"),
        ({"width": None}, "width is None: it should be a valid integer"),
        ({"width": 4, "rate": "fast"}, "rate is 'fast': it should be a valid number"),
        ({"width": 4, "rate": 0}, "rate is 0: it should be greater than 0"),
        ({"width": 4, "heads": 1}, "heads is 1: it should be greater than or equal to 2"),
        ({"width": 4, "heads": 3}, "heads is 3: it must divide width = 4"),
        ({"width": 4, "kind": "third"}, "kind is 'third': it should be 'full' or 'half'"),
        ({"width": 4, "causal": "yes"}, "causal is 'yes': it should be a valid boolean"),
        ({"width": 4, "causal": 1}, "causal is 1: it should be a valid boolean"),
        ({"width": 4, "sizes": []}, "sizes is []: it should have at least 1 item"),
        ({"width": 4, "sizes": [1, "a"]}, "sizes.1 is 'a': it should be a valid integer"),
        ({"width": 4, "widht": 2}, "widht is 2: there is no such setting; did you mean width?"),
        (
            {"width": 4, "colour": "red"},
            "colour is 'red': there is no such setting; there are causal, heads, kind, rate, sizes, width",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_in_a_sentence(settings_given, sentence):
    with pytest.raises((SettingError, SettingErrors)) as raised:
        construct(Window, settings_given)
    assert str(raised.value) == sentence


WRONG = {"width": -1, "rate": -1, "heads": 0, "kind": "none", "causal": None, "sizes": 3, "other": 0}


@settings(max_examples=50, derandomize=True)
@given(wrong=st.sets(st.sampled_from(sorted(WRONG)), min_size=1))
def test_everything_wrong_is_said_and_nothing_else(wrong):
    sound = {"width": 4, "rate": 0.5, "heads": 2, "kind": "half", "causal": False, "sizes": [1]}
    with pytest.raises(SettingErrors) as raised:
        check(schema(Window), {**sound, **{name: WRONG[name] for name in wrong}})
    assert {error.setting for error in raised.value.errors} == wrong
    assert {error.setting: error.value for error in raised.value.errors} == {name: WRONG[name] for name in wrong}
    assert len(str(raised.value).splitlines()) == len(wrong)


def test_an_error_seen_from_outside_names_where_it_is():
    error = SettingError("window_size", 0, "it should be greater than 0").within("mixer").within("model")
    assert str(error) == "model.mixer.window_size is 0: it should be greater than 0"
    assert (error.setting, error.value, error.expected) == (
        "model.mixer.window_size",
        0,
        "it should be greater than 0",
    )


def test_an_error_met_twice_is_said_once():
    twice = [
        SettingError("a", 1, "it must be 2"),
        SettingError("b", 1, "it must be 2"),
        SettingError("a", 1, "it must be 2"),
    ]
    assert str(SettingErrors(twice)).splitlines() == ["a is 1: it must be 2", "b is 1: it must be 2"]


def test_a_schema_is_a_strict_model_of_the_keywords():
    fields = schema(Window).model_fields
    assert list(fields) == ["width", "rate", "heads", "kind", "causal", "sizes"]
    assert fields["width"].is_required()
    assert fields["rate"].default == 0.5
    assert issubclass(schema(Window), BaseModel)
    assert schema(Window) is schema(Window)
