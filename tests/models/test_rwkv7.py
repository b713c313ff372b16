"""RWKV-7 against flash-linear-attention and one step after the other, and far below float range."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.diagonal_delta_rule import diagonal_delta_rule, diagonal_delta_rule_step
from models import MIXERS, build_model

D = 32


def distance(a, b):
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


def inputs(batch=2, heads=2, length=50, K=6, V=5, strongest=0.6, dtype=torch.float64):
    torch.manual_seed(0)
    r, k, p = torch.randn(3, batch, heads, length, K, dtype=dtype).unbind()
    log_w = -strongest * torch.rand(batch, heads, length, K, dtype=dtype) ** 4
    v = torch.randn(batch, heads, length, V, dtype=dtype)
    p = F.normalize(p, dim=-1)
    state = torch.randn(batch, heads, K, V, dtype=dtype)
    return [t.requires_grad_() for t in (r, log_w, k, v, -p, torch.rand_like(p) * p, state)]


def one_by_one(r, log_w, k, v, a, b, state):
    """S_t = (diag(w_t) + b_t a_t^T) S_{t-1} + k_t v_t^T with the matrix in brackets written out."""
    outputs = []
    for t in range(v.shape[2]):
        transition = torch.diag_embed(log_w[:, :, t].exp()) + b[:, :, t, :, None] * a[:, :, t, None, :]
        state = transition @ state + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append((r[:, :, t, None, :] @ state).squeeze(2))
    return torch.stack(outputs, 2) if outputs else v, state


@settings(max_examples=25)
@given(
    heads=st.integers(1, 2),
    length=st.integers(0, 70),
    chunk=st.sampled_from([1, 2, 8, 64]),
    strongest=st.sampled_from([0.0, 0.6, 1e4]),
)
def test_chunks_are_the_equation(heads, length, chunk, strongest):
    args = inputs(heads=heads, length=length, strongest=strongest)
    torch.testing.assert_close(diagonal_delta_rule(*args, chunk=chunk), one_by_one(*args), rtol=1e-11, atol=1e-11)


def test_a_step_is_the_equation():
    args = inputs(length=1)
    *tokens, state = args
    y, new = diagonal_delta_rule_step(*(t.squeeze(2) for t in tokens), state)
    torch.testing.assert_close((y.unsqueeze(2), new), one_by_one(*args), rtol=1e-13, atol=1e-13)


def test_gradients_are_those_of_the_equation():
    args = inputs()

    def gradients(form):
        y, state = form(*args)
        return torch.autograd.grad(y.square().sum() + state.square().sum(), args)

    torch.testing.assert_close(
        gradients(lambda *args: diagonal_delta_rule(*args, chunk=16)), gradients(one_by_one), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("strongest", [0.6, 1e3, 1e30])
def test_no_decay_overflows_or_costs_digits(strongest):
    """Channels that forget everything within a chunk beside channels that keep everything, in float32."""
    args = inputs(length=150, strongest=strongest)
    with torch.no_grad():
        args[1][..., ::2] = 0
    expected, _ = one_by_one(*args)
    narrow = [t.detach().float().requires_grad_() for t in args]
    y, final = diagonal_delta_rule(*narrow)
    assert distance(y, expected) < 2e-6
    (y.square().sum() + final.square().sum()).backward()
    assert all(t.grad.isfinite().all() for t in narrow)


@settings(max_examples=10)
@given(length=st.integers(1, 140))
def test_is_that_of_fla(length):
    pytest.importorskip("fla")
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence

    r, log_w, k, v, a, b, state = (t.detach() for t in inputs(length=length, K=8, dtype=torch.float32))
    y, final = diagonal_delta_rule(r * 8**-0.5, log_w, k, v, a, b, state)
    expected, expected_state = dplr_recurrence(r, k, v, a, b, log_w, state)
    assert distance(y, expected) < 2e-6
    assert distance(final, expected_state) < 2e-6


@pytest.mark.filterwarnings("ignore:According to Bo")
@pytest.mark.parametrize("head_dim", [8, 32])
def test_is_the_first_layer_of_fla_with_its_weights(head_dim):
    layers = pytest.importorskip("fla.layers")
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
    from fla.ops.rwkv7.fused_addcmul import torch_addcmul_rwkv7
    from fla.ops.rwkv7.fused_k_update import k_update_ref
    from fla.ops.rwkv7.gate_output_correction import gate_output_correction_ref

    torch.manual_seed(0)
    ref = layers.RWKV7Attention(hidden_size=D, head_dim=head_dim, layer_idx=0, num_hidden_layers=2)
    for parameter in ref.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    mixer = MIXERS["rwkv7"](D, head_dim=head_dim)
    mixer.load_state_dict(ref.state_dict(), strict=True)

    x = torch.randn(2, 90, D)
    towards = F.pad(x, (0, 0, 1, 0))[:, :-1] - x
    xr, xw, xk, xv, xa, xg = torch_addcmul_rwkv7(x, towards, ref.x_r, ref.x_w, ref.x_k, ref.x_v, ref.x_a, ref.x_g)
    r, k, v, g = ref.r_proj(xr), ref.k_proj(xk), ref.v_proj(xv), ref.g_lora(xg)
    w, a = -0.6065306597126334 * ref.w_lora(xw).sigmoid(), ref.a_lora(xa).sigmoid()
    kk = F.normalize((k * ref.k_k).unflatten(-1, (-1, head_dim)), dim=-1)
    k = k_update_ref(k, a, ref.k_a)
    r, w, k, v, a = (t.unflatten(-1, (-1, head_dim)) for t in (r, w, k, v, a))
    heads_first = (t.transpose(1, 2) for t in (r * head_dim**0.5, k, v, -kk, kk * a, w))
    o, _ = dplr_recurrence(*heads_first)
    o = ref.g_norm(o.transpose(1, 2).reshape(-1, D)).view(2, 90, D)
    expected = ref.o_proj(gate_output_correction_ref(o, r, k, ref.r_k, v, g))
    assert distance(mixer(x), expected) < 3e-6


@pytest.mark.filterwarnings("ignore:According to Bo")
@pytest.mark.parametrize("d_model", [64, 128, 1024])
def test_begins_as_the_first_layer_of_fla(d_model):
    layers = pytest.importorskip("fla.layers")
    reference = layers.RWKV7Attention(hidden_size=d_model, layer_idx=0, num_hidden_layers=2)
    model = build_model({"vocab_size": 8, "d_model": d_model, "layers": ["rwkv7"]})
    mixer = model.blocks[0].mixer
    assert {n: p.shape for n, p in mixer.named_parameters()} == {n: p.shape for n, p in reference.named_parameters()}
    names = [n for n, _ in mixer.named_parameters() if n.startswith(("x_", "k_", "r_k")) and "proj" not in n]
    names += ["w_lora.lora.0.weight", "w_lora.lora.2.bias", "a_lora.lora.2.bias"]
    for name in names:
        torch.testing.assert_close(mixer.get_parameter(name), reference.get_parameter(name), rtol=0, atol=2e-6)
    for lora in ("w_lora", "a_lora", "g_lora"):
        scales = (torch.linalg.matrix_norm(m.get_parameter(f"{lora}.lora.2.weight"), 2) for m in (mixer, reference))
        torch.testing.assert_close(*scales)


@pytest.mark.parametrize(("d_model", "head_dim"), [(10, 2), (16, 16), (48, 16), (64, 64), (96, 32), (128, 64)])
def test_finds_a_head_width_for_any_model_width(d_model, head_dim):
    mixer = MIXERS["rwkv7"](d_model)
    assert mixer.head_dim == head_dim
    assert mixer(torch.randn(1, 3, d_model)).shape == (1, 3, d_model)


def test_compiles_into_one_graph():
    mixer, x = MIXERS["rwkv7"](16), torch.randn(2, 70, 16)
    torch.testing.assert_close(torch.compile(mixer, fullgraph=True, backend="aot_eager")(x), mixer(x))
