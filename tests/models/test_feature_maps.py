"""Feature maps against the kernels that their papers write down and the maps of flash-linear-attention."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from models import MIXERS, build_model
from models.feature_maps import FEATURE_MAPS, Performer, build_feature_map

K = 8


def distance(a, b):
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


def build(name, feature_dim=K):
    phi = build_feature_map(name, feature_dim).double()
    for parameter in phi.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return phi


def queries_and_keys(length=12, feature_dim=K):
    torch.manual_seed(0)
    return torch.randn(2, 3, length, feature_dim, dtype=torch.float64).unbind()


every_map = pytest.mark.parametrize("name", list(FEATURE_MAPS))


@every_map
@settings(max_examples=8)
@given(feature_dim=st.integers(1, 9), length=st.integers(0, 12))
def test_similarity_is_the_product_of_features(name, feature_dim, length):
    q, k = queries_and_keys(length, feature_dim)
    phi = build(name, feature_dim)
    assert phi(q).shape == (*q.shape[:-1], phi.expanded_dim)
    torch.testing.assert_close(phi.similarity(q, k), phi(q) @ phi(k).mT, rtol=1e-12, atol=1e-12)
    if phi.positive:
        assert (phi.similarity(5 * q, 5 * k) >= 0).all()


@every_map
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_keep_the_dtype_and_have_finite_gradients(name, dtype):
    phi = build_feature_map(name, K).to(dtype)
    x = torch.randn(5, K, dtype=dtype, requires_grad=True)
    features = phi(x)
    assert features.dtype == dtype
    (features.float() * torch.randn(features.shape)).sum().backward()
    for tensor in [x, *phi.parameters()]:
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().max() > 0


@every_map
def test_linear_attention_is_the_weighted_mean_of_values(name):
    torch.manual_seed(0)
    mixer = MIXERS["linear_attention"](16, feature_dim=K, num_heads=2, feature_map=name).double()
    x = torch.randn(2, 140, 16, dtype=torch.float64)
    q, k, v = (p(x).unflatten(-1, (2, -1)).transpose(1, 2) for p in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    weights = (mixer.phi(q) @ mixer.phi(k).mT).tril()
    if mixer.phi.positive:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-6)
    assert distance(mixer(x), mixer.o_proj((weights @ v).transpose(1, 2).flatten(-2))) < 1e-10
    y, state = mixer.prefill(x[:, :60], mixer.init_state(2))
    z, state = mixer.prefill(x[:, 60:139], state)
    last, _ = mixer.step(x[:, 139], state)
    assert distance(torch.cat([y, z, last[:, None]], 1), mixer(x)) < 1e-10


@pytest.mark.parametrize("order", [1, 2, 3])
def test_taylor_is_the_polynomial(order):
    q, k = queries_and_keys()
    s = q @ k.mT / K**0.5
    phi = build({1: "taylor1", 2: "taylor", 3: "taylor3"}[order])
    expected = sum(s**d / math.factorial(d) for d in range(order + 1))
    assert distance(phi(q) @ phi(k).mT, expected) < 1e-14
    assert phi.expanded_dim == math.comb(K + order, order)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_taylor_is_that_of_fla():
    maps = pytest.importorskip("fla.modules.feature_map")
    q, k = queries_and_keys()
    phi, reference = build("taylor"), maps.TaylorFeatureMap(K)
    assert distance(phi(q) @ phi(k).mT, reference(q) @ reference(k).mT) < 1e-14
    assert phi(q).shape == reference(q).shape


def test_simple_maps_are_their_formulas():
    x = torch.tensor([-2.0, -0.5, 0.0, 3.0])
    expected = {
        "elu": [math.exp(-2), math.exp(-0.5), 1.0, 4.0],
        "relu": [0.0, 0.0, 0.0, 3.0],
        "identity": x.tolist(),
        "square": [4.0, 0.25, 0.0, 9.0],
    }
    for name, values in expected.items():
        torch.testing.assert_close(build_feature_map(name, 4)(x), torch.tensor(values))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_rebased_is_that_of_fla():
    """The reference's features without its GPU-only norm, and its attention of normalised inputs."""
    maps = pytest.importorskip("fla.modules.feature_map")
    from fla.ops.rebased.naive import naive_parallel_rebased

    q, k = queries_and_keys()
    v = torch.randn(3, 12, 5, dtype=torch.float64)
    phi = build("rebased")
    reference = maps.RebasedFeatureMap(K, normalize=False).double()
    reference.load_state_dict(phi.state_dict(), strict=True)
    normalised = [F.layer_norm(t, (K,)) for t in (q, k)]
    assert distance(phi(q) @ phi(k).mT, reference(normalised[0]) @ reference(normalised[1]).mT) < 1e-14

    weights = phi.similarity(q, k).tril()
    y = weights @ v / (weights.sum(-1, keepdim=True) + 1e-6)
    affine = [reference(t, flatten=False) for t in normalised]
    assert distance(y, naive_parallel_rebased(*affine, v)) < 1e-13


def test_hedgehog_is_that_of_fla():
    """The reference doubles before the softmax, which the learned weights absorb."""
    maps = pytest.importorskip("fla.modules.feature_map")
    q, _ = queries_and_keys()
    phi, reference = build("hedgehog"), maps.HedgehogFeatureMap(K).double()
    reference.load_state_dict({name: tensor / 2 for name, tensor in phi.state_dict().items()}, strict=True)
    assert distance(phi(q), reference(q)) < 1e-14


def test_hedgehog_begins_as_the_identity_in_a_language_model():
    layer = {"name": "linear_attention", "feature_map": "hedgehog", "feature_dim": K}
    phi = build_model({"vocab_size": 8, "d_model": 16, "layers": [layer]}).blocks[0].mixer.phi
    torch.testing.assert_close(phi.layer.weight, torch.eye(K))
    x = torch.randn(3, K)
    torch.testing.assert_close(phi(x), torch.cat([x.exp(), (-x).exp()], -1) / (x.exp() + (-x).exp()).sum(-1)[:, None])


def test_performer_is_its_equation_and_near_the_softmax_kernel():
    q, k = queries_and_keys()
    phi = build("performer")
    features = []
    for w in phi.projection:
        features.append([((x / K**0.25) @ w - x.square().sum(-1) / (2 * K**0.5)).exp() / 256**0.5 for x in (q, k)])
    expected = sum(a[..., :, None] * b[..., None, :] for a, b in features)
    assert distance(phi.similarity(q, k), expected) < 1e-13
    # Of F features, exp(|q + k|^2 / sqrt(K)) / F is the relative variance: at half the norm, some e^1.4 / 2^16.
    many = Performer(K, num_features=2**16).double()
    assert distance(many.similarity(q / 2, k / 2), (q @ k.mT / 4 / K**0.5).exp()) < 0.02


def test_performer_draws_are_orthogonal_normal_and_the_same_every_time():
    first = build_feature_map("performer", 16)
    torch.manual_seed(1)
    w = build_feature_map("performer", 16).projection
    assert torch.equal(first.projection, w)
    assert "projection" in first.state_dict()
    for block in w.split(16):
        angles = block @ block.T / block.norm(dim=-1) / block.norm(dim=-1)[:, None]
        torch.testing.assert_close(angles, torch.eye(16), rtol=0, atol=1e-6)
    assert abs(w.mean()) < 0.05
    assert abs(w.std() - 1) < 0.05


def test_members_share_the_performer_draw():
    from recallbench.members import every_member, stack

    layer = {"name": "linear_attention", "feature_map": "performer"}
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(build_model({"vocab_size": 16, "d_model": 16, "layers": [layer]}))
    tokens = torch.randint(16, (3, 20))
    positions = torch.arange(20).expand(3, 20)
    skeleton, parameters = stack(models, torch.device("cpu"))
    losses = every_member(skeleton, "loss")(parameters, tokens, positions, tokens)
    for member, alone in zip(losses, models, strict=True):
        torch.testing.assert_close(member, alone.loss(tokens, positions, tokens))


@pytest.mark.parametrize("name", ["rebased", "hedgehog", "performer"])
def test_compiles_into_one_graph(name):
    mixer, x = MIXERS["linear_attention"](16, feature_map=name), torch.randn(2, 70, 16)
    torch.testing.assert_close(torch.compile(mixer, fullgraph=True, backend="aot_eager")(x), mixer(x))


def test_the_study_of_feature_maps_has_them_all():
    study = yaml.safe_load((Path(__file__).parents[2] / "conf" / "study" / "based_figure3.yaml").read_text())
    assert study["hydra"]["sweeper"]["grids"][-1]["mixer.feature_map"] == list(FEATURE_MAPS)
