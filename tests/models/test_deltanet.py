"""DeltaNet and Gated DeltaNet against flash-linear-attention and one step after the other."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.delta_rule import delta_rule, delta_rule_step
from models import MIXERS, build_model
from models.settings import SettingError

D = 32


def distance(a, b):
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


def inputs(batch=2, heads=2, length=50, K=6, V=5, strongest=1.0, greatest_beta=1.0, dtype=torch.float64):
    torch.manual_seed(0)
    q = torch.randn(batch, heads, length, K, dtype=dtype)
    k = F.normalize(torch.randn(batch, heads, length, K, dtype=dtype), dim=-1)
    v = torch.randn(batch, heads, length, V, dtype=dtype)
    beta = greatest_beta * torch.rand(batch, heads, length, dtype=dtype)
    log_decay = -strongest * torch.rand(batch, heads, length, dtype=dtype) ** 4
    state = torch.randn(batch, heads, K, V, dtype=dtype)
    return [t.requires_grad_() for t in (q, k, v, beta, log_decay, state)]


def one_by_one(q, k, v, beta, log_decay, state):
    """S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T with the matrix in brackets written out."""
    outputs, one = [], torch.eye(k.shape[-1], dtype=k.dtype)
    for t in range(v.shape[2]):
        key, b, a = k[:, :, t, :, None], beta[:, :, t, None, None], log_decay[:, :, t, None, None].exp()
        state = a * (one - b * key @ key.mT) @ state + b * key @ v[:, :, t, None, :]
        outputs.append((q[:, :, t, None, :] @ state).squeeze(2))
    return torch.stack(outputs, 2) if outputs else v, state


@settings(max_examples=25)
@given(
    heads=st.integers(1, 2),
    length=st.integers(0, 70),
    chunk=st.sampled_from([1, 3, 8, 64]),
    strongest=st.sampled_from([None, 0.0, 1.0, 1e4]),
    greatest_beta=st.sampled_from([1.0, 2.0]),
)
def test_chunks_are_the_equation(heads, length, chunk, strongest, greatest_beta):
    args = inputs(heads=heads, length=length, strongest=strongest or 0.0, greatest_beta=greatest_beta)
    given = args if strongest is not None else without_decay(args)
    torch.testing.assert_close(delta_rule(*given, chunk=chunk), one_by_one(*args), rtol=1e-11, atol=1e-11)


def without_decay(args):
    *tensors, _, state = args
    return *tensors, None, state


@pytest.mark.parametrize("decays", [True, False])
def test_a_step_is_the_equation(decays):
    args = inputs(length=1, strongest=float(decays))
    q, k, v, beta, log_decay, state = args
    q, k, v, beta, a = (t.squeeze(2) for t in (q, k, v, beta, log_decay))
    y, new = delta_rule_step(q, k, v, beta, a if decays else None, state)
    torch.testing.assert_close((y.unsqueeze(2), new), one_by_one(*args), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("decays", [True, False])
def test_gradients_are_those_of_the_equation(decays):
    args = inputs(strongest=float(decays))
    wanted = [t for t in (args if decays else without_decay(args)) if t is not None]

    def gradients(form):
        y, state = form(*args)
        return torch.autograd.grad(y.square().sum() + state.square().sum(), wanted)

    torch.testing.assert_close(
        gradients(lambda *args: delta_rule(*(args if decays else without_decay(args)), chunk=16)),
        gradients(one_by_one),
        rtol=1e-10,
        atol=1e-10,
    )


@pytest.mark.parametrize("greatest_beta", [1.0, 2.0])
def test_keys_that_repeat_do_not_cost_digits(greatest_beta):
    """The same key at every position makes the triangular system full: powers of its matrix would grow as binomials."""
    args = inputs(length=200, greatest_beta=greatest_beta)
    with torch.no_grad():
        args[1][:] = args[1][:, :, :1]
    expected, _ = one_by_one(*args)
    y, _ = delta_rule(*(t.float() for t in args))
    assert distance(y, expected) < 2e-6


@settings(max_examples=10)
@given(length=st.integers(1, 140), decays=st.booleans())
def test_is_that_of_fla(length, decays):
    pytest.importorskip("fla")
    from fla.ops.delta_rule.naive import delta_rule_recurrence
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule

    args = inputs(length=length, K=8, strongest=float(decays), dtype=torch.float32)
    q, k, v, beta, log_decay, state = (t.detach() for t in args)
    y, final = delta_rule(q * 8**-0.5, k, v, beta, log_decay if decays else None, state)
    if decays:
        heads_last = (t.transpose(1, 2) for t in (q, k, v, beta, log_decay))
        expected, expected_state = naive_recurrent_gated_delta_rule(
            *heads_last, initial_state=state, output_final_state=True
        )
        expected = expected.transpose(1, 2)
    else:
        expected, expected_state = delta_rule_recurrence(q, k, v, beta, state)
    assert distance(y, expected) < 2e-6
    assert distance(final, expected_state) < 2e-6


def convolved(conv, x):
    """What flash-linear-attention's ShortConvolution does: the last k inputs of each channel, weighted, and silu."""
    weight = conv.weight.squeeze(1)
    padded = F.pad(x, (0, 0, weight.shape[1] - 1, 0))
    return F.silu(sum(padded[:, i : i + x.shape[1]] * weight[:, i] for i in range(weight.shape[1])))


def layer_of_fla(reference, x, *, norm, activation):
    """The forward pass of the reference's layers on a CPU: their modules, their naive recurrence."""
    from fla.ops.gated_delta_rule.gate import naive_gdn_gate
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule

    q, k, v = (getattr(reference, f"{name}_proj")(x) for name in "qkv")
    if reference.use_short_conv:
        q, k, v = (convolved(getattr(reference, f"{n}_conv1d"), t) for n, t in zip("qkv", (q, k, v), strict=True))
    else:
        q, k, v = activation(q), activation(k), F.silu(v)
    q, k, v = (t.unflatten(-1, (reference.num_heads, -1)) for t in (q, k, v))
    beta = reference.b_proj(x).sigmoid() * (2 if reference.allow_neg_eigval else 1)
    decay = torch.zeros_like(beta)
    if hasattr(reference, "a_proj"):
        decay = naive_gdn_gate(reference.a_proj(x), reference.A_log, reference.dt_bias)
    o, _ = naive_recurrent_gated_delta_rule(norm(q), norm(k), v, beta, decay)
    o = F.rms_norm(o, o.shape[-1:], reference.o_norm.weight, eps=1e-5)
    if reference.use_gate:
        o = o * F.silu(reference.g_proj(x)).unflatten(-1, (reference.num_heads, -1))
    return reference.o_proj(o.flatten(-2))


def l2(x):
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def perturbed(module):
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return module


@pytest.mark.filterwarnings("ignore:ShortConvolution is crucial")
@pytest.mark.parametrize(
    ("options", "norm", "activation"),
    [
        ({}, l2, F.silu),
        ({"num_heads": 2, "expand_k": 0.5, "expand_v": 2.0, "use_gate": True}, l2, F.silu),
        ({"num_heads": 4, "use_short_conv": False, "allow_neg_eigval": True}, l2, F.silu),
        (
            {"qk_norm": "sum", "qk_activation": "elu", "use_short_conv": False},
            lambda x: F.normalize(x, p=1, dim=-1),
            lambda x: F.elu(x) + 1,
        ),
    ],
)
def test_deltanet_is_the_layer_of_fla_with_its_weights(options, norm, activation):
    layers = pytest.importorskip("fla.layers")
    torch.manual_seed(0)
    reference = perturbed(layers.DeltaNet(hidden_size=D, **{"num_heads": 1, **options}))
    mixer = MIXERS["deltanet"](D, **options)
    mixer.load_state_dict(reference.state_dict(), strict=True)
    x = torch.randn(2, 90, D)
    assert distance(mixer(x), layer_of_fla(reference, x, norm=norm, activation=activation)) < 3e-6


@pytest.mark.filterwarnings("ignore:ShortConvolution is crucial")
@pytest.mark.parametrize(
    "options",
    [
        {"num_heads": 1, "head_dim": 24},
        {"num_heads": 3, "head_dim": 8, "expand_v": 1.5, "conv_size": 3},
        {"num_heads": 2, "head_dim": 12, "use_short_conv": False, "use_gate": False, "allow_neg_eigval": True},
    ],
)
def test_gated_deltanet_is_the_layer_of_fla_with_its_weights(options):
    layers = pytest.importorskip("fla.layers")
    torch.manual_seed(0)
    reference = perturbed(layers.GatedDeltaNet(hidden_size=D, **options))
    mixer = MIXERS["gated_deltanet"](D, **options)
    mixer.load_state_dict(reference.state_dict(), strict=True)
    x = torch.randn(2, 90, D)
    assert distance(mixer(x), layer_of_fla(reference, x, norm=l2, activation=F.silu)) < 3e-6


@pytest.mark.parametrize("name", ["deltanet", "gated_deltanet"])
@pytest.mark.parametrize("d_model", [10, 16, 48, 64, 96, 128])
def test_constructs_from_a_width_alone(name, d_model):
    mixer = MIXERS[name](d_model)
    assert mixer(torch.randn(1, 3, d_model)).shape == (1, 3, d_model)


def test_without_short_convolutions_the_state_is_the_memory():
    mixer = MIXERS["deltanet"](D, use_short_conv=False)
    assert mixer.state_bytes(100, torch.float32) == 4 * D * D
    y, _ = mixer.prefill(torch.randn(2, 9, D), mixer.init_state(2))
    assert y.shape == (2, 9, D)


def test_a_fractional_value_width_is_refused():
    with pytest.raises(SettingError, match=r"expand_v is 1.25: expand_v \* head_dim must be a whole number"):
        MIXERS["gated_deltanet"](D, head_dim=6, expand_v=1.25)


def test_initial_decays_survive_in_a_language_model():
    mixer = build_model({"vocab_size": 8, "d_model": D, "layers": [{"name": "gated_deltanet", "num_heads": 8}]})
    mixer = mixer.blocks[0].mixer
    assert 0 < mixer.A_log.exp().min() <= mixer.A_log.exp().max() <= 16
    dt = F.softplus(mixer.dt_bias)
    assert 0.99e-3 < dt.min() <= dt.max() < 1.01e-1


@pytest.mark.parametrize("name", ["deltanet", "gated_deltanet"])
def test_compiles_into_one_graph(name):
    mixer, x = MIXERS[name](16), torch.randn(2, 70, 16)
    torch.testing.assert_close(torch.compile(mixer, fullgraph=True, backend="aot_eager")(x), mixer(x))
