"""Mamba and Mamba-2 against transformers with the same weights, and against their recurrences written out."""

import pytest
import torch
import torch.nn.functional as F

from models import MIXERS, build_model

D, S = 24, 6
TOLERANCE = {torch.float32: 2e-6, torch.float64: 3e-7}
"""Relative. transformers rounds A, B and C to float32 whatever its weights are, so float64 gains but one digit."""


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()


def perturbed(module):
    for parameter in module.parameters():
        parameter.data += 0.4 * torch.randn_like(parameter)
    return module


def mamba():
    transformers = pytest.importorskip("transformers")
    from transformers.models.mamba.modeling_mamba import MambaMixer

    config = transformers.MambaConfig(hidden_size=D, state_size=S, num_hidden_layers=1, time_step_rank=5)
    return MambaMixer(config, 0), config, MIXERS["mamba"](D, d_state=S, dt_rank=5)


def mamba2(num_groups=1, head_dim=12):
    transformers = pytest.importorskip("transformers")
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    heads = 2 * D // head_dim
    config = transformers.Mamba2Config(
        hidden_size=D,
        state_size=S,
        num_hidden_layers=1,
        num_heads=heads,
        head_dim=head_dim,
        n_groups=num_groups,
        chunk_size=8,
    )
    return Mamba2Mixer(config, 0), config, MIXERS["mamba2"](D, d_state=S, head_dim=head_dim, num_groups=num_groups)


against_transformers = pytest.mark.parametrize(
    "pair",
    [mamba, mamba2, lambda: mamba2(num_groups=2), lambda: mamba2(num_groups=4, head_dim=6)],
    ids=["mamba", "mamba2", "mamba2_2_groups", "mamba2_4_groups"],
)


@against_transformers
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("length", [1, 30, 150])
def test_parallel_form_is_that_of_transformers(pair, dtype, length):
    torch.manual_seed(0)
    reference, _, mixer = pair()
    reference = perturbed(reference).to(dtype).eval()
    mixer.to(dtype).load_state_dict(reference.state_dict())
    x = torch.randn(2, length, D, dtype=dtype)
    assert distance(mixer(x), reference(x)) < TOLERANCE[dtype]


@against_transformers
@pytest.mark.parametrize("dtype", TOLERANCE)
@torch.no_grad()
def test_recurrent_form_is_that_of_transformers(pair, dtype):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    reference, config, mixer = pair()
    reference = perturbed(reference).to(dtype).eval()
    mixer.to(dtype).load_state_dict(reference.state_dict())
    x = torch.randn(2, 12, D, dtype=dtype)
    cache, state = transformers.DynamicCache(config=config), mixer.init_state(2)
    expected = reference(x[:, :7], cache_params=cache)
    y, state = mixer.prefill(x[:, :7], state)
    assert distance(y, expected) < TOLERANCE[dtype]
    for t in range(7, 12):
        expected = reference(x[:, t : t + 1], cache_params=cache).squeeze(1)
        y, state = mixer.step(x[:, t], state)
        assert distance(y, expected) < TOLERANCE[dtype]


def convolved(mixer, u):
    """The short convolution and its nonlinearity, position by position."""
    weight, k = mixer.conv1d.weight.squeeze(1), mixer.conv1d.weight.shape[-1]
    padded = F.pad(u, (0, 0, k - 1, 0))
    y = torch.stack([(padded[:, t : t + k] * weight.T).sum(1) for t in range(u.shape[1])], 1)
    return F.silu(y + mixer.conv1d.bias)


def test_mamba_is_its_recurrence():
    torch.manual_seed(0)
    mixer = perturbed(MIXERS["mamba"](D, d_state=S).double())
    x = torch.randn(2, 70, D, dtype=torch.float64)
    u, z = mixer.in_proj(x).chunk(2, -1)
    u = convolved(mixer, u)
    dt, B, C = mixer.x_proj(u).split([mixer.dt_rank, S, S], -1)
    dt = F.softplus(mixer.dt_proj(dt))
    h, outputs = 0, []
    for t in range(x.shape[1]):
        decay = torch.exp(-mixer.A_log.exp() * dt[:, t, :, None])
        h = decay * h + (dt * u)[:, t, :, None] * B[:, t, None, :]
        outputs.append((h * C[:, t, None, :]).sum(-1) + mixer.D * u[:, t])
    expected = mixer.out_proj(torch.stack(outputs, 1) * F.silu(z))
    assert distance(mixer(x), expected) < 1e-13


def test_mamba2_is_its_recurrence():
    torch.manual_seed(0)
    H, P, G = 4, 12, 2
    mixer = perturbed(MIXERS["mamba2"](D, d_state=S, head_dim=P, num_groups=G).double())
    x = torch.randn(2, 150, D, dtype=torch.float64)
    z, xBC, dt = mixer.in_proj(x).split([2 * D, 2 * D + 2 * G * S, H], -1)
    u, B, C = convolved(mixer, xBC).split([2 * D, G * S, G * S], -1)
    dt, u = F.softplus(dt + mixer.dt_bias), u.unflatten(-1, (H, P))
    outputs, state = [], [0] * H
    for t in range(x.shape[1]):
        heads = []
        for h in range(H):
            group = slice(h // (H // G) * S, (h // (H // G) + 1) * S)
            a = torch.exp(-mixer.A_log[h].exp() * dt[:, t, h])[:, None, None]
            state[h] = a * state[h] + torch.einsum("b,bp,bs->bps", dt[:, t, h], u[:, t, h], B[:, t, group])
            heads.append(torch.einsum("bps,bs->bp", state[h], C[:, t, group]) + mixer.D[h] * u[:, t, h])
        outputs.append(torch.cat(heads, -1))
    gated = (torch.stack(outputs, 1) * F.silu(z)).unflatten(-1, (G, -1))
    normalised = (gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(-2) * mixer.norm.weight
    assert distance(mixer(x), mixer.out_proj(normalised)) < 1e-13


@pytest.mark.parametrize("d_model", [10, 16, 48, 64, 96, 128])
def test_mamba2_finds_a_head_width_for_any_model_width(d_model):
    mixer = MIXERS["mamba2"](d_model)
    assert mixer.num_heads * mixer.head_dim == 2 * d_model
    assert mixer(torch.randn(1, 3, d_model)).shape == (1, 3, d_model)


def test_initial_step_sizes_survive_in_a_language_model():
    model = build_model({"vocab_size": 8, "d_model": 64, "layers": ["mamba", "mamba2"]})
    first, second = (block.mixer for block in model.blocks)
    for bias in (first.dt_proj.bias, second.dt_bias):
        dt = F.softplus(bias)
        assert dt.min() > 0.99e-3
        assert dt.max() < 1.01e-1
    assert first.dt_proj.weight.abs().max() > 0.4  # rank 4: uniform up to 1/2, where normal values would stay below 0.1
    torch.testing.assert_close(first.A_log.exp()[0], torch.arange(1.0, 17))
    assert 1 <= second.A_log.exp().min() <= second.A_log.exp().max() <= 16
