"""The models that the authors of Based released, converted by key and shape: Based, Transformer++ and Mamba.

Shapes say all that they can; what they do not, heads, the window and rotary positions, is read from `config.json`.
docs/checkpoints.md says where each convention comes from, and what could not be confirmed.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.checkpoints import MAMBA_KEYS, load_by_key
from models.language_model import LanguageModel, ModelConfig

Weights = Mapping[str, Tensor]

KEYS = {
    r"transformer\.embeddings\.word_embeddings\.weight": "embedding.weight",
    r"transformer\.layers\.(\d+)\.norm1\.(weight|bias)": r"blocks.\1.mixer_norm.\2",
    r"transformer\.layers\.(\d+)\.norm2\.(weight|bias)": r"blocks.\1.mlp_norm.\2",
    r"transformer\.layers\.(\d+)\.mlp\.fc2\.weight": r"blocks.\1.mlp.down_proj.weight",
    r"transformer\.layers\.(\d+)\.mixer\.proj_([qkv])\.weight": r"blocks.\1.mixer.\2_proj.weight",
    r"transformer\.layers\.(\d+)\.mixer\.conv1?\.conv\.weight": r"blocks.\1.mixer.conv.weight",
    r"transformer\.layers\.(\d+)\.mixer\.(in_proj\..+)": r"blocks.\1.mixer.\2",
    r"transformer\.ln_f\.(weight|bias)": r"norm.\1",
    r"lm_head\.weight": "head.weight",
    # As `_unpacked` names what the checkpoint holds in other matrices, or under one name for several mixers.
    r"transformer\.layers\.(\d+)\.(mixer\.[qkvo]_proj\.weight)": r"blocks.\1.\2",
    r"transformer\.layers\.(\d+)\.(mixer\.out_proj\..+)": r"blocks.\1.\2",
    r"transformer\.layers\.(\d+)\.(mlp\.in_proj\.weight)": r"blocks.\1.\2",
}
"""Keys of the releases -> ours."""

EPS = 1e-5
"""Of our norms."""


def load_released(folder: Path | str) -> LanguageModel:
    """A model of the authors of Based: `config.json` and `model.safetensors`, or `pytorch_model.bin`, in a folder.

    No code of the checkpoint runs. **Raises** `ValueError` for another architecture, an option that our mixers lack,
    or with a list of every key that is unmatched or of another shape; `FileNotFoundError` where a file is missing.
    """
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    weights = read_weights(folder)
    if any(name.startswith("backbone.") for name in weights):
        model, keys = LanguageModel(_mamba_config(weights)), MAMBA_KEYS
    elif any(name.startswith("transformer.layers.") for name in weights):
        weights = _unpacked(weights, config, folder)
        model, keys = LanguageModel(_config(weights, config, folder)), KEYS
    else:
        found = ", ".join(sorted(weights)[:3])
        raise ValueError(f"{folder}: neither transformer.layers.* nor backbone.* is in it; it has {found}, ...")
    load_by_key(model, weights, keys)
    return model


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a release by key, without what its trainer put beside and before them."""
    if (path := folder / "model.safetensors").exists():
        weights = load_file(path)
    elif (path := folder / "pytorch_model.bin").exists():
        weights = torch.load(path, map_location="cpu", weights_only=True)
    else:
        raise FileNotFoundError(f"{folder}: neither model.safetensors nor pytorch_model.bin is in it")
    return {key.removeprefix("model."): tensor for key, tensor in weights.items() if "metrics" not in key}


def _unpacked(weights: Weights, config: Mapping[str, Any], folder: Path) -> dict[str, Tensor]:
    """One key for each matrix of ours: Wqkv is queries, keys and values; fc1 is the MLP's value, then its gate.

    Beside an fc3, the value, fc1 is the gate alone. Ours is the gate, then the value.
    """
    new: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        layer = key.rpartition(".mixer.")[0] or key.rpartition(".mlp.")[0]
        if key.endswith(".mixer.Wqkv.weight"):
            D, kv = tensor.shape[1], (tensor.shape[0] - tensor.shape[1]) // 2
            parts = tensor.split([D, kv, tensor.shape[0] - D - kv])
            new |= {f"{layer}.mixer.{name}_proj.weight": part for name, part in zip("qkv", parts, strict=True)}
        elif key.endswith(".mlp.fc1.weight"):
            fc3 = weights.get(f"{layer}.mlp.fc3.weight")
            up, gate = tensor.chunk(2) if fc3 is None else (fc3, tensor)
            new[f"{layer}.mlp.in_proj.weight"] = torch.cat([gate, up])
        elif key.endswith(".mixer.out_proj.weight") and f"{layer}.mixer.in_proj.weight" not in weights:
            new[f"{layer}.mixer.o_proj.weight"] = tensor
        elif key.endswith(".rotary_emb.inv_freq"):
            _check_frequencies(key, tensor, config, folder)
        elif not key.endswith(".mlp.fc3.weight"):
            new[key] = tensor
    return new


def _config(weights: Weights, config: Mapping[str, Any], folder: Path) -> ModelConfig:
    """The architecture of unpacked weights. **Raises** `ValueError` for what our layers do not compute."""
    refused = {
        "activation_function": config.get("activation_function", "swiglu") != "swiglu",
        "layer_norm_epsilon": abs(config.get("layer_norm_epsilon", EPS) - EPS) > 1e-12,
        "prenorm": config.get("prenorm", True) is not True,
        "parallel_block": bool(config.get("parallel_block", False)),
        "scale_attn_weights": config.get("scale_attn_weights", True) is not True,
        "scale_attn_by_inverse_layer_idx": bool(config.get("scale_attn_by_inverse_layer_idx", False)),
        "max_position_embeddings": bool(config.get("max_position_embeddings", 0)),
        "rotary_emb_interleaved": bool(config.get("rotary_emb_interleaved", False)),
        "rotary_emb_base": config.get("rotary_emb_base", 10_000) != 10_000,
        "rotary_emb_scale_base": config.get("rotary_emb_scale_base") is not None,
    }
    if wrong := [f"{name} = {config[name]!r}" for name, other in refused.items() if other]:
        raise ValueError(f"{folder}: our layers do not compute this: {', '.join(wrong)}")
    table = _of(weights, "transformer.embeddings.word_embeddings.weight", folder)
    head = weights.get("lm_head.weight")
    fc2 = _of(weights, "transformer.layers.0.mlp.fc2.weight", folder)
    return ModelConfig(
        vocab_size=table.shape[0],
        d_model=table.shape[1],
        layers=list(_layers(weights, config, folder)),
        mlp_expand=fc2.shape[1] / fc2.shape[0],
        norm="layer" if "transformer.ln_f.bias" in weights else "rms",
        tie_embeddings=head is None or torch.equal(head, table),
    )


def _layers(weights: Weights, config: Mapping[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    indices = {int(found[1]) for key in weights if (found := re.match(r"transformer\.layers\.(\d+)\.", key))}
    if indices != set(range(len(indices))):
        missing = sorted(set(range(max(indices))) - indices)
        raise ValueError(f"{folder}: it has no transformer.layers.{missing[0]}")
    for i in range(len(indices)):
        own = f"transformer.layers.{i}.mixer."
        if own + "proj_q.weight" in weights:
            how = _part(config, "alt_mixer", folder)
            heads = how.get("num_heads", 16)
            width = weights[own + "proj_q.weight"].shape[0] // heads
            if (scaled := how.get("feature_map", {}).get("input_dim", width)) != width:
                raise ValueError(f"{folder}: feature_map.input_dim is {scaled}, and heads are {width} wide")
            yield {"name": "linear_attention", "feature_dim": width, "num_heads": heads}
        elif own + "in_proj.weight" in weights:
            width, d_model = weights[own + "in_proj.weight"].shape
            conv = weights.get(own + "conv.conv.weight", weights.get(own + "conv1.conv.weight"))
            kernel_size = 3 if conv is None else conv.shape[-1]
            bias = own + "in_proj.bias" in weights
            yield {"name": "short_conv", "kernel_size": kernel_size, "expand": width // d_model, "bias": bias}
        elif own + "q_proj.weight" in weights:
            yield _attention(i, weights[own + "k_proj.weight"], config, folder)
        else:
            found = ", ".join(sorted(key for key in weights if key.startswith(own))) or "nothing"
            raise ValueError(f"{folder}: {own}* is none of our mixers; it has {found}")


def _attention(i: int, key: Tensor, config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Full attention or, where the configuration says that of the layer, a window. `key` [G K, D]."""
    heads = _heads(config, folder)
    fraction = config.get("rotary_emb_fraction")
    if not isinstance(fraction, int | float):  # without it, attention would be blind to order and nothing would say so
        raise ValueError(f"{folder}: config.json does not say rotary_emb_fraction, the rotated part of each head")
    attention: dict[str, Any] = {"num_heads": heads, "use_rope": fraction > 0}
    if 0 < fraction < 1:
        attention["rope_fraction"] = fraction
    if (kv_heads := key.shape[0] // (key.shape[1] // heads)) != heads:
        attention["num_kv_heads"] = kv_heads
    if i in config.get("alt_mixer_2_layers", ()):
        # Positions t - window_size // 2 .. t, as their code hands it to FlashAttention.
        window_size = _part(config, "alt_mixer_2", folder)["window_size"] // 2 + 1
        return {"name": "sliding_window", "window_size": window_size, **attention}
    return {"name": "attention", **attention}


def _heads(config: Mapping[str, Any], folder: Path) -> int:
    if not isinstance(heads := config.get("n_head", config.get("num_attention_heads")), int):
        raise ValueError(f"{folder}: config.json does not say n_head, the number of attention heads")
    return heads


def _part(config: Mapping[str, Any], name: str, folder: Path) -> Mapping[str, Any]:
    if not isinstance(part := config.get(name), Mapping):
        raise ValueError(f"{folder}: config.json does not say {name}, which its weights need")
    return part


def _of(weights: Weights, key: str, folder: Path) -> Tensor:
    if key not in weights:
        raise ValueError(f"{folder}: it has no {key}")
    return weights[key]


def _check_frequencies(key: str, frequency: Tensor, config: Mapping[str, Any], folder: Path) -> None:
    """Rotary frequencies that a checkpoint keeps are those that ours computes."""
    width = round(config.get("rotary_emb_fraction", 0.0) * config.get("n_embd", 0) / _heads(config, folder))
    expected = 10_000.0 ** -(torch.arange(0, width, 2) / max(width, 1))
    if frequency.shape != expected.shape or not torch.allclose(frequency.float(), expected, rtol=1e-2):
        raise ValueError(f"{folder}: {key} is not 10000^(-2i/{width}), the frequencies of our rotary positions")


def _mamba_config(weights: Weights) -> ModelConfig:
    """A Mamba of state-spaces/mamba, from shapes alone."""
    table = next((weights[key] for key in weights if re.fullmatch(r"backbone\.embeddings?\.weight", key)), None)
    first = {key.removeprefix("backbone.layers.0.mixer."): weights[key] for key in weights if ".layers.0.mixer." in key}
    if table is None or not {"A_log", "conv1d.weight", "dt_proj.weight"} <= first.keys():
        raise ValueError("the checkpoint has a backbone that is no Mamba: it lacks an embedding, A_log or dt_proj")
    d_inner, d_state = first["A_log"].shape
    head = weights.get("lm_head.weight")
    layer = {
        "name": "mamba",
        "d_state": d_state,
        "d_conv": first["conv1d.weight"].shape[-1],
        "expand": d_inner // table.shape[1],
        "dt_rank": first["dt_proj.weight"].shape[1],
    }
    return ModelConfig(
        vocab_size=table.shape[0],
        d_model=table.shape[1],
        layers=[layer],
        repeats=len({key.split(".")[2] for key in weights if key.startswith("backbone.layers.")}),
        norm="layer" if "backbone.norm_f.bias" in weights else "rms",
        tie_embeddings=head is None or torch.equal(head, table),
    )
