"""One look a family, always the same."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

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


# What a reader sees, from linear RGB, with all cones, without the M cones (deuteranopia) and without the L cones
# (protanopia). Source: Machado, Oliveira and Fernandes 2009, doi 10.1109/TVCG.2009.113, severity 1.
READERS = {
    "trichromat": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}


def oklab(rgb):
    """Linear RGB [3] to Oklab [3], in which distances are about as large as they look. Source: Ottosson 2020."""
    to_lms = [[0.4122215, 0.5363325, 0.0514460], [0.2119035, 0.6806995, 0.1073970], [0.0883025, 0.2817188, 0.6299787]]
    to_lab = [
        [0.2104543, 0.7936178, -0.0040720],
        [1.9779985, -2.4285922, 0.4505937],
        [0.0259040, 0.7827718, -0.8086758],
    ]
    return np.array(to_lab) @ np.cbrt(np.array(to_lms) @ rgb)


@pytest.mark.parametrize("reader", READERS)
def test_families_differ_in_color_for_every_reader(reader):
    """By 10 hundredths of Oklab's lightness range; 2 are said to be just noticeable, side by side."""
    seen = {}
    for family in FAMILIES:
        c = np.array(to_rgb(look(family).color))
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        seen[family] = oklab((READERS[reader] @ linear).clip(0, 1))
    distances = {(a, b): 100 * np.linalg.norm(seen[a] - seen[b]) for a, b in combinations(FAMILIES, 2)}
    assert {pair: distance for pair, distance in distances.items() if distance < 10} == {}


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
