"""What every entry of the registry must satisfy; a new mixer is covered on the day it is added."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from models import MIXERS

D = 16


@pytest.fixture(autouse=True, scope="module")
def _on_the_gpu_where_there_is_one():
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    yield
    torch.set_default_device(None)  # not "cpu", which would stay in the way of later tests that compile


TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5}
"""Relative error of the recurrent form against the parallel form: float64 leaves only the order of summation; in
float32 sums over some 50 terms of magnitude 1 lose a few dozen units of the last place (6e-8)."""


def build(name, dtype=torch.float64, seed=0, **options):
    torch.manual_seed(seed)
    mixer = MIXERS[name](D, **options).to(dtype)
    for parameter in mixer.parameters():  # away from the special values of an initialisation (zeros, ones)
        parameter.data += 0.1 * torch.randn_like(parameter)
    return mixer


def distance(a, b):
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


def steps(mixer, x, state):
    outputs = []
    for t in range(x.shape[1]):
        y, state = mixer.step(x[:, t], state)
        outputs.append(y)
    return (torch.stack(outputs, 1) if outputs else x[:, :0]), state


def held_bytes(state):
    """Summed storage of the leaves, each storage once, a sequence."""
    leaves = pytree.tree_leaves(state)
    storages = {leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in leaves if leaf.numel()}
    return sum(storages.values())


every_mixer = pytest.mark.parametrize("name", [name for name, kind in MIXERS.items() if not kind.needs_gpu])


@every_mixer
def test_is_made_where_it_is_asked_to_be(name, monkeypatch):
    """Also in the company of transformers, which loads models with another linspace and leaves torch taking it for its
    own."""
    linspace = torch.linspace
    monkeypatch.setattr(torch, "linspace", lambda *sizes, device="cpu", **options: linspace(*sizes, device=device))
    with torch.device("meta"):
        mixer = MIXERS[name](D)
    assert {tensor.device.type for tensor in mixer.state_dict().values()} == {"meta"}


@every_mixer
@pytest.mark.parametrize("dtype", TOLERANCE)
@settings(max_examples=8)
@given(batch=st.integers(1, 3), prefix=st.integers(0, 70), middle=st.integers(0, 40), suffix=st.integers(0, 5))
def test_forward_is_prefill_then_prefill_then_steps(name, dtype, batch, prefix, middle, suffix):
    mixer = build(name, dtype)
    x = torch.randn(batch, prefix + middle + suffix, D, dtype=dtype)
    if x.shape[1] == 0:
        return
    expected = mixer(x)
    for max_length in (None, x.shape[1] + 3):
        state = mixer.init_state(batch, max_length=max_length)
        first, state = mixer.prefill(x[:, :prefix], state)
        second, state = mixer.prefill(x[:, prefix : prefix + middle], state)
        third, state = steps(mixer, x[:, prefix + middle :], state)
        assert distance(torch.cat([first, second, third], 1), expected) < TOLERANCE[dtype]


@every_mixer
def test_steps_alone_equal_forward_far_beyond_any_chunk(name):
    mixer = build(name)
    x = torch.randn(2, 300, D, dtype=torch.float64)
    y, _ = steps(mixer, x, mixer.init_state(2))
    assert distance(y, mixer(x)) < TOLERANCE[torch.float64]


@every_mixer
@settings(max_examples=10)
@given(t=st.integers(0, 149))
def test_no_output_sees_the_future(name, t):
    mixer = build(name)
    x = torch.randn(1, 150, D, dtype=torch.float64)
    other = x.clone()
    other[:, t + 1 :] = torch.randn_like(other[:, t + 1 :])
    assert distance(mixer(other)[:, : t + 1], mixer(x)[:, : t + 1]) < TOLERANCE[torch.float64]


@every_mixer
def test_rows_of_a_batch_do_not_meet(name):
    mixer = build(name)
    x = torch.randn(3, 40, D, dtype=torch.float64)
    alone = torch.cat([mixer(row) for row in x.split(1)])
    assert distance(mixer(x), alone) < TOLERANCE[torch.float64]
    state = mixer.init_state(3)
    y, state = mixer.prefill(x[:, :20], state)
    last, _ = steps(mixer, x[:, 20:], state)
    assert distance(torch.cat([y, last], 1), alone) < TOLERANCE[torch.float64]


@every_mixer
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_what_eight_bits_cannot_hold_becomes_the_largest_that_they_can(name, dtype):
    mixer = build(name, torch.float32)
    x = 1e6 * torch.randn(2, 12, D)
    state = mixer.init_state(2, max_length=12, dtype=dtype)
    _, state = mixer.prefill(x[:, :6], state)
    for after in (state, steps(mixer, x[:, 6:], state)[1]):
        narrow = [leaf.float() for leaf in pytree.tree_leaves(after) if leaf.dtype == dtype]
        assert narrow
        assert all(leaf.isfinite().all() for leaf in narrow)


@every_mixer
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 5, 33])
def test_state_bytes_are_the_bytes_held(name, dtype, length):
    mixer = build(name, torch.float32)
    x = torch.randn(2, length, D)
    _, after_prefill = mixer.prefill(x, mixer.init_state(2, dtype=dtype))
    _, after_steps = steps(mixer, x, mixer.init_state(2, dtype=dtype))
    for state in (after_prefill, after_steps):
        assert held_bytes(state) == 2 * mixer.state_bytes(length, dtype)


@every_mixer
def test_state_keeps_its_shapes_and_dtypes(name):
    mixer = build(name, torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        state = mixer.init_state(2, max_length=12, dtype=dtype)
        kinds = [(leaf.shape, leaf.dtype) for leaf in pytree.tree_leaves(state)]
        y, state = mixer.prefill(torch.randn(2, 7, D), state)
        z, state = mixer.step(torch.randn(2, D), state)
        assert y.dtype == z.dtype == torch.float32
        assert [(leaf.shape, leaf.dtype) for leaf in pytree.tree_leaves(state)] == kinds


@every_mixer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_and_reach_every_parameter(name, dtype):
    mixer = build(name, dtype)
    x = torch.randn(2, 130, D, dtype=dtype, requires_grad=True)
    mixer(x).float().square().mean().backward()
    for parameter_name, tensor in [("x", x), *mixer.named_parameters()]:
        assert tensor.grad is not None, parameter_name
        assert tensor.grad.isfinite().all(), parameter_name
        assert tensor.grad.abs().max() > 0, parameter_name


@every_mixer
def test_bfloat16_stays_near_float32(name):
    """Inputs and weights carry 8 bits of mantissa, half a unit is 2^-9 = 2e-3; a handful of roundings in a row and some
    cancellation stay within 5e-2, both for all of it in bfloat16 and for a bfloat16 state alone."""
    mixer = build(name, torch.float32)
    x = torch.randn(2, 40, D)
    expected = mixer(x)
    y, _ = steps(mixer, x, mixer.init_state(2, dtype=torch.bfloat16))
    assert distance(y, expected) < 5e-2
    y = build(name, torch.float32).bfloat16()(x.bfloat16())
    assert distance(y.float(), expected) < 5e-2


@every_mixer
def test_a_bfloat16_state_lasts(name):
    """What counts tokens does not stop counting: bfloat16 has every whole number up to 256, and these are 700."""
    mixer = build(name, torch.float32)
    x = torch.randn(1, 700, D)
    y, _ = steps(mixer, x, mixer.init_state(1, dtype=torch.bfloat16))
    assert distance(y[:, -50:], mixer(x)[:, -50:]) < 0.2


@every_mixer
def test_members_are_the_same_mixers_side_by_side(name):
    """Stacked parameters under vmap give what each member gives alone, outputs and gradients."""
    members = [build(name, seed=s) for s in range(3)]
    x = torch.randn(2, 37, D, dtype=torch.float64)
    params, buffers = torch.func.stack_module_state(members)
    skeleton = build(name).to("meta")

    def one(p, b):
        return torch.func.functional_call(skeleton, (p, b), (x,))

    y = torch.func.vmap(one)(params, buffers)
    y.square().sum().backward()
    for i, member in enumerate(members):
        alone = member(x)
        alone.square().sum().backward()
        assert distance(y[i], alone) < TOLERANCE[torch.float64]
        for parameter_name, parameter in member.named_parameters():
            assert distance(params[parameter_name].grad[i], parameter.grad) < 1e-8, parameter_name
