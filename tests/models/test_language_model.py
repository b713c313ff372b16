"""The language model around the mixers: one function in two forms, and a start of the right size."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import MIXERS, build_model
from models.settings import SettingError, SettingErrors

TOLERANCE = 1e-9
"""In float64 the two forms differ in the order of summation alone."""

HYBRID = {"d_model": 16, "vocab_size": 13, "repeats": 2, "mlp_expand": 1.5, "norm": "rms", "tie_embeddings": False}


def build(seed=0, **config):
    """A model in float64, away from the special values of an initialisation."""
    torch.manual_seed(seed)
    model = build_model({**HYBRID, **config}).double()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()


def steps(model, tokens, state):
    outputs = []
    for t in range(tokens.shape[1]):
        y, state = model.step(tokens[:, t], state)
        outputs.append(y[:, None])
    return torch.cat(outputs, 1) if outputs else torch.empty(len(tokens), 0, 13), state


@pytest.mark.parametrize("mixer", [name for name, kind in MIXERS.items() if not kind.needs_gpu])
@settings(max_examples=4, derandomize=True)
@given(batch=st.integers(1, 3), prefix=st.integers(0, 20), suffix=st.integers(0, 6), capacity=st.booleans())
def test_forward_is_prefill_then_steps(mixer, batch, prefix, suffix, capacity):
    model = build(layers=[mixer, "short_conv"])
    tokens = torch.randint(13, (batch, prefix + suffix))
    if prefix + suffix == 0:
        return
    state = model.init_state(batch, max_length=prefix + suffix if capacity else None)
    assert len(state) == 4
    first, state = model.prefill(tokens[:, :prefix], state)
    last, state = steps(model, tokens[:, prefix:], state)
    expected = model(tokens)
    assert expected.shape == (batch, prefix + suffix, 13)
    assert distance(torch.cat([first, last.double()], 1), expected) < TOLERANCE


@pytest.mark.parametrize("options", [{"norm": "layer"}, {"mlp_expand": 0}, {"tie_embeddings": True}, {"repeats": 1}])
def test_every_option_keeps_the_two_forms_equal_and_matters(options):
    layers = ["attention", {"name": "linear_attention", "feature_dim": 4}]
    model, other = build(layers=layers, **options), build(layers=layers)
    tokens = torch.randint(13, (2, 20))
    first, state = model.prefill(tokens[:, :15], model.init_state(2))
    last, _ = steps(model, tokens[:, 15:], state)
    assert distance(torch.cat([first, last], 1), model(tokens)) < TOLERANCE
    assert distance(model(tokens), other(tokens)) > 0.01


@settings(max_examples=20, derandomize=True)
@given(batch=st.integers(1, 3), asked=st.lists(st.integers(0, 16), min_size=1, max_size=20))
def test_asking_at_positions_gathers_from_all_logits(batch, asked):
    """In any order, some more than once, other ones in every row."""
    model = build(layers=["based"])
    tokens = torch.randint(13, (batch, 17))
    positions = torch.tensor(asked)[None] + torch.arange(batch)[:, None]
    positions %= 17
    expected = model(tokens).gather(1, positions[..., None].expand(-1, -1, 13))
    assert distance(model(tokens, positions), expected) < TOLERANCE


def test_the_state_of_a_model_is_that_of_its_layers():
    model = build(layers=["attention", {"name": "linear_attention", "feature_dim": 4}, "short_conv"])
    a_layer = 2 * 10 * 16 * 4 + 15 * (16 + 1) * 4 + 2 * 16 * 4
    assert model.state_bytes(10, torch.float32) == 2 * a_layer
    assert [type(block.mixer) for block in model.blocks] == 2 * [
        MIXERS[name] for name in ("attention", "linear_attention", "short_conv")
    ]


@pytest.mark.parametrize(("mlp_expand", "repeats"), [(0, 1), (0, 3), (2, 1), (2, 2)])
def test_weights_start_at_their_scale(mlp_expand, repeats):
    """GPT-2's 0.02 at width 768, as the root of the width asks at others; what writes to the residual stream smaller by
    the root of its number. A standard deviation of n numbers is known to 1 / sqrt(2 n): 0.3 % for 256 x 256."""
    D, vocabulary = 256, 300
    torch.manual_seed(0)
    layers = ["attention", "short_conv"]
    config = {"vocab_size": vocabulary, "d_model": D, "layers": layers, "repeats": repeats, "tie_embeddings": False}
    model = build_model({**config, "mlp_expand": mlp_expand})
    writers = 2 * repeats * (2 if mlp_expand else 1)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            expected = 0.0 if name.endswith("bias") else 1.0
            assert (parameter == expected).all(), name
        elif parameter.ndim == 2:
            std = 0.02 * math.sqrt(768 / parameter.shape[1])
            if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight")):
                std /= math.sqrt(writers)
            assert parameter.std().item() == pytest.approx(std, rel=0.02), name
            assert parameter.mean().abs() < 0.02 * std, name
    assert sum("down_proj" in name for name, _ in model.named_parameters()) == (2 * repeats if mlp_expand else 0)


def test_a_model_starts_by_guessing():
    """Tied embeddings of a narrow model make no token certain: the loss of the first step is near log(vocabulary)."""
    torch.manual_seed(0)
    model = build_model({"vocab_size": 512, "d_model": 64, "layers": ["short_conv", "attention"]})
    tokens = torch.randint(512, (8, 64))
    loss = torch.nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(512), rel=0.1)


def test_what_a_mixer_initialises_itself_is_left_alone():
    """The filter of Hyena starts uniform within 1 / sqrt(width), where a normal draw would stray beyond."""
    torch.manual_seed(0)
    model = build_model({"vocab_size": 8, "d_model": 32, "layers": ["hyena"]})
    linear = [m for m in model.modules() if getattr(m, "keeps_initialisation", False)]
    assert len(linear) == 4
    for module in linear:
        bound = 1 / math.sqrt(module.in_features)
        assert 0.5 * bound < module.weight.abs().max() <= bound


def test_the_seed_makes_the_weights():
    first, same, other = (build(seed, layers=["attention"]) for seed in (0, 0, 1))
    names = dict(first.named_parameters())
    assert all(torch.equal(p, same.get_parameter(name)) for name, p in names.items())
    assert not any(torch.equal(p, other.get_parameter(name)) for name, p in names.items())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"layers": []}, "layers is []: it should have at least 1 item"),
        ({"layers": ["lstm"]}, "name is 'lstm': it must be one of "),
        ({"layers": [{"feature_dim": 4}]}, "name is None: it must be one of "),
        ({"layers": [{"name": "attention", "num_head": 2}]}, "num_head is 2: there is no such setting; did you mean"),
        ({"layers": [{"name": "attention", "num_heads": 3}]}, "num_heads is 3: it must divide the model width"),
        ({"layers": [{"name": "sliding_window", "window_size": 0}]}, "window_size is 0: it should be greater than 0"),
        ({"layers": [{"name": "based", "feature_map": "exp"}]}, "feature_map is 'exp': it must be one of taylor, "),
        ({"norm": "batch"}, "norm is 'batch': it should be 'layer' or 'rms'"),
        ({"d_model": "wide"}, "d_model is 'wide': it should be a valid integer"),
        ({"d_model": 0}, "d_model is 0: it should be greater than 0"),
        ({"repeats": 1.5}, "repeats is 1.5: it should be a valid integer"),
        ({"mlp_expand": -1}, "mlp_expand is -1: it should be greater than or equal to 0"),
        ({"vocabulary": 3}, "vocabulary is 3: there is no such setting; "),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_said_in_a_sentence(changes, sentence):
    with pytest.raises((SettingError, SettingErrors)) as raised:
        build_model({**HYBRID, "layers": ["attention"], **changes})
    (said,) = str(raised.value).splitlines()
    assert said.startswith(sentence)


def test_everything_wrong_is_said_at_once():
    with pytest.raises(SettingErrors) as raised:
        build_model({"d_model": -1, "layers": ["attention"], "norm": "none"})
    assert str(raised.value).splitlines() == [
        "vocab_size is None: it must be given",
        "d_model is -1: it should be greater than 0",
        "norm is 'none': it should be 'layer' or 'rms'",
    ]
