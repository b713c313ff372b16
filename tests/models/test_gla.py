"""Gated linear attention against flash-linear-attention and one step after the other, and far below float range."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.gated_linear_attention import gated_linear_attention, gated_linear_attention_step
from models import MIXERS
from models.settings import SettingError

D = 32


def distance(a, b):
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


def inputs(batch=2, heads=2, length=50, K=6, V=5, strongest=1.0, dtype=torch.float64):
    torch.manual_seed(0)
    q, k = torch.randn(2, batch, heads, length, K, dtype=dtype).unbind()
    v = torch.randn(batch, heads, length, V, dtype=dtype)
    log_decay = -strongest * torch.rand(batch, heads, length, K, dtype=dtype) ** 4
    state = torch.randn(batch, heads, K, V, dtype=dtype)
    return [t.requires_grad_() for t in (q, k, v, log_decay, state)]


def one_by_one(q, k, v, log_decay, state):
    outputs = []
    for t in range(v.shape[2]):
        y, state = gated_linear_attention_step(q[:, :, t], k[:, :, t], v[:, :, t], log_decay[:, :, t], state)
        outputs.append(y)
    return torch.stack(outputs, 2) if outputs else v, state


@settings(max_examples=25)
@given(
    heads=st.integers(1, 2),
    length=st.integers(0, 70),
    chunk=st.sampled_from([1, 2, 8, 64]),
    strongest=st.sampled_from([0.0, 1.0, 1e4]),
    from_nothing=st.booleans(),
)
def test_chunks_are_steps(heads, length, chunk, strongest, from_nothing):
    q, k, v, log_decay, state = inputs(heads=heads, length=length, strongest=strongest)
    y, final = gated_linear_attention(q, k, v, log_decay, None if from_nothing else state, chunk)
    expected = one_by_one(q, k, v, log_decay, torch.zeros_like(state) if from_nothing else state)
    torch.testing.assert_close((y, final()), expected, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_steps():
    args = inputs()

    def gradients(form):
        y, state = form(*args)
        state = state() if callable(state) else state
        return torch.autograd.grad(y.square().sum() + state.square().sum(), args)

    chunked = gradients(lambda *args: gated_linear_attention(*args, chunk=16))
    torch.testing.assert_close(chunked, gradients(one_by_one), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("strongest", [1.0, 1e3, 1e30])
def test_no_decay_overflows_or_costs_digits(strongest):
    """Channels that forget everything within a chunk beside channels that keep everything, in float32."""
    args = inputs(length=150, strongest=strongest)
    with torch.no_grad():
        args[3][..., ::2] = 0
    expected, _ = one_by_one(*args)
    narrow = [t.detach().float().requires_grad_() for t in args]
    y, final_state = gated_linear_attention(*narrow)
    assert distance(y, expected) < 1e-6
    (y.square().sum() + final_state().square().sum()).backward()
    assert all(t.grad.isfinite().all() for t in narrow)


@settings(max_examples=10)
@given(length=st.integers(1, 140), from_nothing=st.booleans())
def test_is_that_of_fla(length, from_nothing):
    naive = pytest.importorskip("fla.ops.gla.naive")
    q, k, v, log_decay, state = (t.detach() for t in inputs(length=length, K=8, dtype=torch.float32))
    start = None if from_nothing else state
    y, final_state = gated_linear_attention(q * 8**-0.5, k, v, log_decay, start)
    heads_last = (t.transpose(1, 2) for t in (q, k, v, log_decay))
    expected, expected_state = naive.naive_recurrent_gla(*heads_last, start, output_final_state=True)
    assert distance(y, expected.transpose(1, 2)) < 2e-6
    assert distance(final_state(), expected_state) < 2e-6


@pytest.mark.parametrize("options", [{}, {"num_heads": 4, "expand_k": 1.0, "expand_v": 2.0, "gate_low_rank_dim": 8}])
def test_layer_of_fla_with_its_weights(options):
    layers, naive = pytest.importorskip("fla.layers"), pytest.importorskip("fla.ops.gla.naive")
    torch.manual_seed(0)
    reference = layers.GatedLinearAttention(hidden_size=D, **{"num_heads": 1, **options})
    for parameter in reference.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    mixer = MIXERS["gla"](D, **options)
    mixer.load_state_dict(reference.state_dict(), strict=True)
    x = torch.randn(2, 90, D)
    q, k, v, gate, g = (
        getattr(reference, f"{name}_proj")(x).unflatten(-1, (reference.num_heads, -1))
        for name in ("q", "k", "v", "gk", "g")
    )
    o, _ = naive.naive_recurrent_gla(q, k, v, F.logsigmoid(gate) / reference.gate_logit_normalizer)
    o = F.rms_norm(o, o.shape[-1:], reference.g_norm_swish_gate.weight, eps=1e-5) * F.silu(g)
    assert distance(mixer(x), reference.o_proj(o.flatten(-2))) < 2e-6


@pytest.mark.parametrize("d_model", [16, 48, 64, 96, 128])
def test_constructs_from_a_width_alone(d_model):
    mixer = MIXERS["gla"](d_model)
    assert mixer(torch.randn(1, 3, d_model)).shape == (1, 3, d_model)


def test_a_fractional_head_width_is_refused():
    with pytest.raises(SettingError, match=r"expand_k is 0.5: .* must be a whole number, and it is 5.33333"):
        MIXERS["gla"](D, num_heads=3)


def test_compiles_into_one_graph():
    mixer, x = MIXERS["gla"](16), torch.randn(2, 70, 16)
    torch.testing.assert_close(torch.compile(mixer, fullgraph=True, backend="aot_eager")(x), mixer(x))
