"""The table of docs/state.md: measured bytes as the mixers hold them, and differences that add up."""

import re
from pathlib import Path

import pytest
import torch

from models import MIXERS
from recallbench.state import storages

PAGE = Path(__file__).parents[2] / "docs" / "state.md"
D = 128


def number(cell):
    return int(cell.replace(",", ""))


ROWS = {
    cells[0]: cells[1:]
    for line in PAGE.read_text().splitlines()
    if (cells := [cell.strip() for cell in line.strip("|").split("|")])[0] in MIXERS
}


def test_every_mixer_has_a_row():
    assert set(ROWS) == {name for name, mixer in MIXERS.items() if not mixer.needs_gpu}


@pytest.mark.parametrize("name", ROWS)
def test_rows_say_what_is_held(name):
    at_64, at_1024, at_16384, _, literature, difference, reasons = ROWS[name]
    mixer = MIXERS[name](D)
    for cell, length in ((at_64, 64), (at_1024, 1024), (at_16384, 16384)):
        assert number(cell) == mixer.state_bytes(length, torch.float32)
    with torch.no_grad():
        _, state = mixer.prefill(torch.randn(1, 64, D), mixer.init_state(1))
    assert number(at_64) == sum(size for _, size in storages(state).values())
    assert number(at_1024) - number(literature) == number(difference)
    explained = [number(part) for part in re.findall(r"\(([+-][\d,]+)\)", reasons)]
    assert sum(explained) == number(difference)
