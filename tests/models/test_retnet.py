"""RetNet against flash-linear-attention's retention and the weights of its layer."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.decay_attention import decay_linear_attention
from models import MIXERS
from models.settings import SettingError

D = 32


def distance(a, b):
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


def rotated(x, positions):
    """Pairs (i, i + K/2) of [B, N, H, K] as complex numbers, turned by position / 10000^(2i/K)."""
    half = x.shape[-1] // 2
    turns = positions[:, None] / 10_000 ** (torch.arange(half, dtype=torch.float64) / half)
    z = torch.complex(*x.double().chunk(2, dim=-1)) * torch.polar(torch.ones_like(turns), turns)[:, None]
    return torch.cat([z.real, z.imag], dim=-1)


def written_out(mixer, x):
    """The equations of the paper, position by position, in float64."""
    H, N = mixer.num_heads, x.shape[1]
    q, k, v = (proj(x).unflatten(-1, (H, -1)) for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    q, k = (rotated(t, torch.arange(N, dtype=torch.float64)) for t in (q, k))
    gamma = 1 - 2.0 ** (-5 - torch.arange(H, dtype=torch.float64))
    S, outputs = 0, []
    for t in range(N):
        S = gamma[:, None, None] * S + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], S) / mixer.key_dim**0.5)
    y = torch.stack(outputs, 1)
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.g_norm_swish_gate.weight
    return mixer.o_proj((y * F.silu(mixer.g_proj(x)).unflatten(-1, (H, -1))).flatten(-2))


@settings(max_examples=8)
@given(num_heads=st.sampled_from([1, 2, 8]), expand_k=st.sampled_from([0.5, 1.0]), length=st.integers(1, 80))
def test_retnet_is_its_equations(num_heads, expand_k, length):
    torch.manual_seed(0)
    mixer = MIXERS["retnet"](D, num_heads=num_heads, expand_k=expand_k).double()
    mixer.g_norm_swish_gate.weight.data += torch.randn_like(mixer.g_norm_swish_gate.weight)
    x = torch.randn(2, length, D, dtype=torch.float64)
    assert distance(mixer(x), written_out(mixer, x)) < 1e-13


def test_retention_is_that_of_fla():
    pytest.importorskip("fla")
    from fla.ops.retention.naive import naive_retention

    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 5, 130, width) for width in (8, 8, 6))
    gamma = 1 - 2.0 ** (-5 - torch.arange(5))
    log_decay = gamma.log()[:, None].expand(2, 5, 130)
    y, _ = decay_linear_attention(q * 8**-0.5, k, v, log_decay)
    assert distance(y, naive_retention(q, k, v)) < 2e-6


@pytest.mark.parametrize("options", [{"num_heads": 2}, {"num_heads": 4, "expand_k": 0.5, "expand_v": 1.0}])
def test_weights_of_fla_load(options):
    layers = pytest.importorskip("fla.layers")
    reference = layers.MultiScaleRetention(hidden_size=D, **options)
    MIXERS["retnet"](D, **options).load_state_dict(reference.state_dict(), strict=True)


def test_rows_of_a_batch_may_be_at_different_positions():
    torch.manual_seed(0)
    mixer = MIXERS["retnet"](D).double()
    x = torch.randn(2, 30, D, dtype=torch.float64)
    expected = mixer(x)
    ahead = [mixer.prefill(x[i : i + 1, :n], mixer.init_state(1))[1] for i, n in enumerate((9, 17))]
    state = type(ahead[0])(*(torch.cat(leaves) for leaves in zip(*ahead, strict=True)))
    y, _ = mixer.prefill(torch.stack([x[0, 9:22], x[1, 17:30]]), state)
    assert distance(y, torch.stack([expected[0, 9:22], expected[1, 17:30]])) < 1e-12


@pytest.mark.parametrize(("d_model", "num_heads"), [(10, 1), (16, 8), (48, 8), (64, 8), (100, 2), (128, 8)])
def test_finds_heads_for_any_even_width(d_model, num_heads):
    assert MIXERS["retnet"](d_model).num_heads == num_heads


def test_an_odd_head_width_is_refused():
    with pytest.raises(SettingError, match=r"expand_k is 1.0: expand_k \* d_model / num_heads must be an even number"):
        MIXERS["retnet"](D, num_heads=32)


def test_compiles_into_one_graph():
    mixer, x = MIXERS["retnet"](16), torch.randn(2, 70, 16)
    torch.testing.assert_close(torch.compile(mixer, fullgraph=True, backend="aot_eager")(x), mixer(x))
