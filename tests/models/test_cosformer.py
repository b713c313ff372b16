"""cosFormer against its attention matrix written out."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import MIXERS

D = 16


def distance(a, b):
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


def written_out(mixer, x):
    """The weight of every pair, one after the other."""
    H, N = mixer.num_heads, x.shape[1]
    q, k, v = (p(x).unflatten(-1, (H, -1)).transpose(1, 2) for p in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    weights = torch.zeros(x.shape[0], H, N, N, dtype=x.dtype)
    for i in range(N):
        for j in range(i + 1):
            near = math.cos(math.pi * (i - j) / (2 * mixer.horizon))
            weights[:, :, i, j] = (q[:, :, i].relu() * k[:, :, j].relu()).sum(-1) * near
    y = weights @ v / weights.sum(-1, keepdim=True).clamp_min(1e-6)
    return mixer.o_proj(y.transpose(1, 2).flatten(-2))


@settings(max_examples=8)
@given(length=st.integers(1, 50), num_heads=st.sampled_from([1, 4]), horizon=st.sampled_from([50, 2048]))
def test_is_its_attention_matrix(length, num_heads, horizon):
    torch.manual_seed(0)
    mixer = MIXERS["cosformer"](D, num_heads=num_heads, horizon=horizon).double()
    x = torch.randn(2, length, D, dtype=torch.float64)
    assert distance(mixer(x), written_out(mixer, x)) < 1e-12


def test_only_distances_matter_however_far_it_has_come():
    """Positions enter as whole turns plus a rest, so that float32 has its digits left at position 10^9."""
    torch.manual_seed(0)
    mixer = MIXERS["cosformer"](D, horizon=64)
    x = torch.randn(2, 40, D)
    far = mixer.init_state(2)
    far = far._replace(position=far.position + 10**9)
    y, state = mixer.prefill(x, far)
    assert distance(y, mixer(x)) < 1e-5
    assert state.position.tolist() == [10**9 + 40] * 2


def test_outputs_stay_finite_beyond_the_horizon():
    mixer = MIXERS["cosformer"](D, horizon=8)
    assert mixer(torch.randn(2, 200, D)).isfinite().all()


@pytest.mark.parametrize("d_model", [16, 48, 64, 128])
def test_constructs_from_a_width_alone(d_model):
    assert MIXERS["cosformer"](d_model)(torch.randn(1, 3, d_model)).shape == (1, 3, d_model)


def test_compiles_into_one_graph():
    mixer, x = MIXERS["cosformer"](D), torch.randn(2, 150, D)
    torch.testing.assert_close(torch.compile(mixer, fullgraph=True, backend="aot_eager")(x), mixer(x))
