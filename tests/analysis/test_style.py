"""One look a family, always the same."""

import pytest

from analysis.style import look, readable_bytes

FAMILIES = [
    "attention",
    "sliding_window",
    "linear_attention",
    "based",
    "short_conv",
    "long_conv",
    "hyena",
    "h3",
    "mamba",
    "mamba2",
    "retnet",
    "gla",
    "deltanet",
    "gated_deltanet",
    "rwkv7",
]


def test_families_differ_in_color_and_in_marker():
    looks = [look(family) for family in FAMILIES]
    assert len({style.color for style in looks}) == len({style.marker for style in looks}) == 15


def test_other_families_look_like_none_of_them():
    known = {look(family).marker for family in FAMILIES}
    for family in ("my_mixer", "based_hybrid", "fla"):
        assert look(family).marker not in known
        assert look(family) == look(family)
        assert "_" not in look(family).name


@pytest.mark.parametrize(
    ("count", "text"),
    [(256, "256 B"), (1024, "1 KiB"), (4096, "4 KiB"), (1 << 20, "1 MiB"), (3 << 30, "3 GiB")],
)
def test_readable_bytes(count, text):
    assert readable_bytes(count) == text
