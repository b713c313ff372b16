"""Hyena and the gated long convolution against convolutions written as sums, and the state they keep."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import MIXERS
from models.long_filter import ImplicitFilter

D = 6


def build(name, **options):
    torch.manual_seed(0)
    mixer = MIXERS[name](D, **options).double()
    for parameter in mixer.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return mixer


def convolve(h, u):
    """y_t = sum over lags j of h_j u_{t - j}, one product at a time: [L, D], [N, D] -> [N, D]."""
    return torch.stack([sum(h[j] * u[t - j] for j in range(min(len(h), t + 1))) for t in range(len(u))])


def short(conv, u):
    """The short convolution of [N, D] as such a sum."""
    return convolve(conv.weight.squeeze(1).T.flip(0), u) + conv.bias


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def implicit(module, lags, channels, length, bands):
    """The filter of Hyena from its definition, one lag at a time."""
    mlp = module.implicit_filter
    rows = []
    for t in range(lags):
        # bands frequencies from 1e-4 to bands - 1, as the reference has them
        f = [1e-4 + i * (bands - 1 - 1e-4) / max(bands - 1, 1) for i in range(bands)]
        angles = [2 * math.pi * w * t / length for w in f]
        z = torch.tensor([t / length, *map(math.cos, angles), *(-math.sin(a) for a in angles)], dtype=torch.float64)
        for layer in ("0", "2", "4"):
            z = torch.sin(mlp["1"].freq[0] * (mlp[layer].weight @ z + mlp[layer].bias))
        # down to 1 % at 1.5 lengths in the slowest channel and at 0.3 lengths in the fastest
        rate = [math.log(100) * (1 / 1.5 + c / max(channels - 1, 1) * (1 / 0.3 - 1 / 1.5)) for c in range(channels)]
        rows.append((mlp["6"].weight @ z) * torch.tensor([math.exp(-r * t / length) for r in rate], dtype=z.dtype))
    rows[0] = rows[0] + module.bias
    return torch.stack(rows)


@torch.no_grad()
@pytest.mark.parametrize("bands", [1, 4])
def test_implicit_filter_is_its_definition_and_the_same_at_every_length(bands):
    torch.manual_seed(0)
    module = ImplicitFilter(D, 10, 8, bands, 3.0).double()
    close(module(25), implicit(module, 25, D, 10, bands))
    assert torch.equal(module(25)[:7], module(7))


@torch.no_grad()
@pytest.mark.parametrize("order", [2, 3, 4])
def test_hyena_is_gates_and_sums(order):
    mixer = build("hyena", order=order, filter_length=16, filter_width=8)
    x = torch.randn(20, D, dtype=torch.float64)
    gates = short(mixer.short_filter, mixer.in_proj(x)).split(D, -1)
    filters = mixer.filter_fn(20).unflatten(-1, (D, order - 1))
    z = gates[-1]
    for i, gate in enumerate(gates[-2:0:-1]):
        z = convolve(filters[..., i], gate * z)
    close(mixer(x[None])[0], mixer.out_proj(gates[0] * z))


@torch.no_grad()
@pytest.mark.parametrize("implicit", [False, True])
def test_long_conv_is_a_gate_and_a_sum(implicit):
    mixer = build("long_conv", filter_length=7, implicit=implicit)
    x = torch.randn(20, D, dtype=torch.float64)
    h = mixer.conv(20) if implicit else mixer.conv.filter.T
    close(mixer(x[None])[0], mixer.projection(x) * convolve(h, x))


@torch.no_grad()
@settings(max_examples=25)
@given(
    filter_length=st.integers(1, 12),
    implicit=st.booleans(),
    pieces=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    room=st.none() | st.integers(0, 20),
)
def test_any_split_and_any_room_give_what_the_whole_gives(filter_length, implicit, pieces, room):
    mixer = build("long_conv", filter_length=filter_length, implicit=implicit)
    length = sum(pieces) + 5
    x = torch.randn(2, length, D, dtype=torch.float64)
    state, outputs, at = mixer.init_state(2, max_length=None if room is None else length + room), [], 0
    for piece in pieces:
        y, state = mixer.prefill(x[:, at : at + piece], state)
        outputs.append(y)
        at += piece
    for t in range(at, length):
        y, state = mixer.step(x[:, t], state)
        outputs.append(y[:, None])
    close(torch.cat(outputs, 1), mixer(x))
    held = state.inputs.shape[1]
    if room is None:
        assert state.inputs.untyped_storage().nbytes() == 2 * mixer.state_bytes(length, torch.float64)
        assert held == (length if implicit else min(length, filter_length - 1))
    else:
        assert held == (length + room if implicit else min(length + room, filter_length - 1))


@torch.no_grad()
def test_rows_of_a_fixed_state_may_be_of_different_ages():
    mixer = build("long_conv", implicit=True)
    x = torch.randn(2, 9, D, dtype=torch.float64)
    states = [mixer.prefill(x[:1, :3], mixer.init_state(1, max_length=9))[1]]
    states += [mixer.prefill(x[1:, :6], mixer.init_state(1, max_length=9))[1]]
    state = type(states[0])(*(torch.cat(leaves) for leaves in zip(*states, strict=True)))
    y, _ = mixer.step(torch.stack([x[0, 3], x[1, 6]]), state)
    close(y, torch.stack([mixer(x[:1])[0, 3], mixer(x[1:])[0, 6]]))


@torch.no_grad()
@pytest.mark.parametrize("name", ["hyena", "long_conv"])
def test_no_room_for_a_token_is_an_error(name):
    mixer = build(name)
    _, state = mixer.prefill(torch.randn(1, 4, D, dtype=torch.float64), mixer.init_state(1, max_length=4))
    with pytest.raises(IndexError):
        mixer.step(torch.randn(1, D, dtype=torch.float64), state)


def test_hyena_parameters_have_the_names_of_the_reference():
    names = {name for name, _ in MIXERS["hyena"](D).named_parameters()}
    linear = {"in_proj", "out_proj", "short_filter", *(f"filter_fn.implicit_filter.{i}" for i in (0, 2, 4))}
    expected = {f"{module}.{kind}" for module in linear for kind in ("weight", "bias")}
    assert names == expected | {
        "filter_fn.bias",
        "filter_fn.implicit_filter.1.freq",
        "filter_fn.implicit_filter.6.weight",
    }
