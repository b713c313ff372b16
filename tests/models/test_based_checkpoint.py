"""The Based authors' releases: random weights in their published form, loaded, against a direct computation of them."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from models.based_checkpoint import load_released

D, HEADS, VOCABULARY = 32, 2, 40
COMMON = {
    "n_embd": D,
    "n_head": HEADS,
    "rotary_emb_fraction": 1,
    "activation_function": "swiglu",
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 0,
}
BASED = {
    **COMMON,
    "alt_mixer_layers": [1],
    "alt_mixer_2_layers": [2],
    "alt_mixer": {"num_heads": 4, "feature_dim": 6, "feature_map": {"input_dim": 6}},
    "alt_mixer_2": {"num_heads": HEADS, "window_size": 10},
}
ATTENTION = {**COMMON, "rotary_emb_fraction": 0.5}


def mixer_shapes(kind):
    return {
        "conv": {
            "in_proj.weight": (4 * D, D),
            "in_proj.bias": (4 * D,),
            "conv.conv.weight": (2 * D, 1, 3),
            "out_proj.weight": (D, 2 * D),
            "out_proj.bias": (D,),
        },
        "linear": {
            "proj_q.weight": (24, D),
            "proj_k.weight": (24, D),
            "proj_v.weight": (D, D),
            "out_proj.weight": (D, D),
        },
        "attention": {"Wqkv.weight": (3 * D, D), "out_proj.weight": (D, D)},
    }[kind]


def release(kinds, mlp="base"):
    """Weights by their published keys, in float64."""
    torch.manual_seed(0)
    shapes = {"transformer.embeddings.word_embeddings.weight": (VOCABULARY, D), "transformer.ln_f.weight": (D,)}
    for i, kind in enumerate(kinds):
        layer = f"transformer.layers.{i}."
        shapes |= {f"{layer}mixer.{key}": shape for key, shape in mixer_shapes(kind).items()}
        shapes |= {layer + "norm1.weight": (D,), layer + "norm2.weight": (D,)}
        if mlp == "base":
            shapes |= {layer + "mlp.fc1.weight": (4 * D, D), layer + "mlp.fc2.weight": (D, 2 * D)}
        else:
            shapes |= {layer + f"mlp.{fc}.weight": (2 * D, D) for fc in ("fc1", "fc3")}
            shapes |= {layer + "mlp.fc2.weight": (D, 2 * D)}
    weights = {key: 0.3 * torch.randn(shape, dtype=torch.float64) for key, shape in shapes.items()}
    return {**weights, "lm_head.weight": weights["transformer.embeddings.word_embeddings.weight"].clone()}


def write(folder, weights, config, binary=False):
    (folder / "config.json").write_text(json.dumps(config))
    if binary:  # as a Lightning trainer leaves it
        beside = {"train_metrics.num-tokens.count": torch.tensor(7)}
        torch.save(
            {**{f"model.{key}": value for key, value in weights.items()}, **beside}, folder / "pytorch_model.bin"
        )
    else:
        save_file(weights, folder / "model.safetensors")
    return folder


def rms(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def rotated(x, fraction):
    """Pairs (i, i + r/2) of the first r features, turned by position * 10000^(-2i/r); x [N, K]."""
    r = round(fraction * x.shape[-1])
    out = x.clone()
    for n in range(len(x)):
        for i in range(r // 2):
            c, s = math.cos(n * 1e4 ** (-2 * i / r)), math.sin(n * 1e4 ** (-2 * i / r))
            out[n, i] = c * x[n, i] - s * x[n, i + r // 2]
            out[n, i + r // 2] = s * x[n, i] + c * x[n, i + r // 2]
    return out


def directly(weights, config, tokens):
    """Logits [N, vocabulary] in float64, a position at a time, from the published weights."""
    x = weights["transformer.embeddings.word_embeddings.weight"][tokens]
    N, i = len(tokens), 0
    while f"transformer.layers.{i}.norm1.weight" in weights:
        own = {
            key.removeprefix(f"transformer.layers.{i}."): value
            for key, value in weights.items()
            if key.startswith(f"transformer.layers.{i}.")
        }
        h, y = rms(x, own["norm1.weight"]), torch.zeros_like(x)
        if "mixer.in_proj.weight" in own:
            u, gate = (h @ own["mixer.in_proj.weight"].T + own["mixer.in_proj.bias"]).chunk(2, -1)
            kernel = own["mixer.conv.conv.weight"][:, 0]
            for n in range(N):
                z = sum(kernel[:, 2 - ago] * u[n - ago] for ago in range(min(3, n + 1)))
                y[n] = own["mixer.out_proj.weight"] @ (z * z.sigmoid() * gate[n]) + own["mixer.out_proj.bias"]
        elif "mixer.proj_q.weight" in own:
            q, k, v = (h @ own[f"mixer.proj_{name}.weight"].T for name in "qkv")
            for n in range(N):
                heads = []
                for a in range(4):
                    s = k[: n + 1, 6 * a : 6 * a + 6] @ q[n, 6 * a : 6 * a + 6] / math.sqrt(6)
                    taylor = 1 + s + s.square() / 2
                    heads.append(taylor @ v[: n + 1, 8 * a : 8 * a + 8] / taylor.sum())
                y[n] = own["mixer.out_proj.weight"] @ torch.cat(heads)
        else:
            q, k, v = (h @ own["mixer.Wqkv.weight"].T).chunk(3, -1)
            K, heads = D // HEADS, []
            for a in range(HEADS):
                part = slice(K * a, K * a + K)
                qa, ka = (rotated(t[:, part], config["rotary_emb_fraction"]) for t in (q, k))
                past = 5 if i in config.get("alt_mixer_2_layers", ()) else N  # window_size // 2 = 5 and the position
                out = torch.zeros(N, K, dtype=torch.float64)
                for n in range(N):
                    seen = slice(max(0, n - past), n + 1)
                    out[n] = torch.softmax(ka[seen] @ qa[n] / math.sqrt(K), 0) @ v[seen, part]
                heads.append(out)
            y = torch.cat(heads, -1) @ own["mixer.out_proj.weight"].T
        x = x + y
        h = rms(x, own["norm2.weight"])
        if "mlp.fc3.weight" in own:
            gate, up = h @ own["mlp.fc1.weight"].T, h @ own["mlp.fc3.weight"].T
        else:
            up, gate = (h @ own["mlp.fc1.weight"].T).chunk(2, -1)
        x = x + (gate * gate.sigmoid() * up) @ own["mlp.fc2.weight"].T
        i += 1
    return rms(x, weights["transformer.ln_f.weight"]) @ weights["lm_head.weight"].T


@torch.no_grad()
@pytest.mark.parametrize(
    ("kinds", "config", "mlp", "binary"),
    [
        (["conv", "linear", "attention", "conv"], BASED, "base", False),
        (["attention", "attention"], ATTENTION, "base", True),
        (["attention"], ATTENTION, "alt", False),
    ],
)
def test_released_weights_compute_what_their_code_says(kinds, config, mlp, binary, tmp_path):
    weights = release(kinds, mlp)
    model = load_released(write(tmp_path, weights, config, binary)).double()
    model.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    tokens = torch.randint(VOCABULARY, (1, 19))
    # Loaded in float32: the published weights, rounded to it, are what both sides compute with.
    rounded = {key: value.float().double() for key, value in weights.items()}
    expected = directly(rounded, config, tokens[0])
    # Their denominators have 1e-12 added, ours 1e-6, of sums of at least 1/2.
    assert torch.allclose(model(tokens)[0], expected, rtol=1e-5, atol=1e-5)
    assert model.head is None


@torch.no_grad()
def test_a_released_mamba_is_known_by_its_shapes(tmp_path):
    import transformers

    theirs = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=61, hidden_size=24, num_hidden_layers=3, state_size=8, time_step_rank=2)
    ).eval()
    weights = {
        key.replace("backbone.embeddings", "backbone.embedding"): value.clone()
        for key, value in theirs.state_dict().items()
    }
    write(tmp_path, weights, {"d_model": 24, "n_layer": 3, "vocab_size": 61}, binary=True)
    tokens = torch.randint(61, (2, 19))
    assert torch.allclose(load_released(tmp_path)(tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)


def test_what_does_not_match_is_refused(tmp_path):
    weights = release(["conv", "linear"])
    layer = "transformer.layers.1."
    bad = {key: value for key, value in weights.items() if key != layer + "norm2.weight"}
    bad[layer + "mixer.proj_v.weight"] = torch.zeros(D + 1, D)
    bad[layer + "mixer.gate.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match="does not match") as error:
        load_released(write(tmp_path, bad, BASED))
    said = str(error.value)
    assert "blocks.1.mixer.v_proj.weight: (33, 32) in the checkpoint, (32, 32) in the model" in said
    assert "transformer.layers.1.mixer.gate.weight: not in the model" in said
    assert "blocks.1.mlp_norm.weight: not in the checkpoint" in said
    for config, sentence in (
        ({**BASED, "layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
        ({**BASED, "rotary_emb_interleaved": True}, "rotary_emb_interleaved"),
        ({key: value for key, value in BASED.items() if key != "alt_mixer"}, "alt_mixer"),
    ):
        with pytest.raises(ValueError, match=sentence):
            load_released(write(tmp_path, weights, config))


def test_attention_whose_positions_are_unknown_is_refused(tmp_path):
    config = {key: value for key, value in ATTENTION.items() if key != "rotary_emb_fraction"}
    with pytest.raises(ValueError, match="does not say rotary_emb_fraction"):
        load_released(write(tmp_path, release(["attention"]), config))


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return exec, ("raise SystemExit",)

    (tmp_path / "config.json").write_text("{}")
    torch.save({"transformer.ln_f.weight": Trap()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match="weights_only"):
        load_released(tmp_path)
