"""The state of a model as measured is the state that its shapes foretell."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import MIXERS, build_model
from recallbench.state import measure_state, storages

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


@pytest.mark.parametrize("mixer", [name for name, kind in MIXERS.items() if not kind.needs_gpu])
@settings(max_examples=8, derandomize=True)
@given(length=st.integers(1, 70), dtype=st.sampled_from(DTYPES), repeats=st.integers(1, 2))
def test_measured_bytes_are_those_foretold(mixer, length, dtype, repeats):
    torch.manual_seed(0)
    model = build_model({"vocab_size": 11, "d_model": 16, "layers": ["short_conv", mixer], "repeats": repeats})
    measured = measure_state(model, length, dtype)
    foretold = [block.mixer.state_bytes(length, dtype) for block in model.blocks]
    assert [layer["mixer"] for layer in measured["layers"]] == repeats * ["short_conv", mixer]
    assert [layer["bytes"] for layer in measured["layers"]] == foretold
    assert measured["bytes"] == sum(foretold) == model.state_bytes(length, dtype)
    assert measured["elements"] == sum(layer["elements"] for layer in measured["layers"])
    assert (measured["length"], measured["dtype"]) == (length, str(dtype).removeprefix("torch."))


def test_known_sizes():
    """From the definitions: two past inputs of a convolution of 3, and 1 + K + K(K+1)/2 features of D + 1 numbers."""
    layers = ["short_conv", {"name": "linear_attention", "feature_dim": 4}, "attention"]
    measured = measure_state(build_model({"vocab_size": 11, "d_model": 8, "layers": layers}), 20)
    elements = [2 * 8, 15 * (8 + 1), 2 * 20 * 8]
    assert [layer["elements"] for layer in measured["layers"]] == elements
    assert [layer["bytes"] for layer in measured["layers"]] == [4 * count for count in elements]


def test_a_view_weighs_what_it_keeps_alive_and_once():
    whole = torch.zeros(100)
    assert sorted(storages([whole[:10], {"again": whole[50:]}, torch.zeros(3), torch.zeros(0)]).values()) == [
        (3, 12),
        (100, 400),
    ]
