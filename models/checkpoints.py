"""Published weights into our models, by key and shape. Whatever does not match is an error, never left as it was."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from models.language_model import LanguageModel, ModelConfig

MAMBA_KEYS = {
    r"backbone\.embeddings?\.weight": "embedding.weight",
    r"backbone\.layers\.(\d+)\.norm\.weight": r"blocks.\1.mixer_norm.weight",
    r"backbone\.layers\.(\d+)\.mixer\.(.+)": r"blocks.\1.mixer.\2",
    r"backbone\.norm_f\.weight": "norm.weight",
    r"lm_head\.weight": "head.weight",
}
"""Keys of Mamba and Mamba-2, in transformers and in state-spaces/mamba -> ours."""


def load_mamba(folder: Path | str) -> LanguageModel:
    """A Mamba or Mamba-2 as transformers saves it: `config.json` and `model.safetensors` in a folder.

    **Raises** `ValueError` for another architecture, an option that our mixers lack, or keys that do not match.
    """
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    kind = config["model_type"]
    if kind not in _SETTINGS:
        raise ValueError(f"{folder}: model_type is {kind!r}; it must be one of {', '.join(_SETTINGS)}")
    ours = ModelConfig(
        vocab_size=config["vocab_size"],
        d_model=config["hidden_size"],
        layers=[{"name": kind, **_SETTINGS[kind](config)}],
        repeats=config["num_hidden_layers"],
        norm="rms",
        tie_embeddings=config["tie_word_embeddings"],
    )
    model = LanguageModel(ours)
    load_by_key(model, load_file(folder / "model.safetensors"), MAMBA_KEYS)
    return model


def load_by_key(model: LanguageModel, weights: Mapping[str, Tensor], keys: Mapping[str, str]) -> None:
    """Load `weights`, renamed by the patterns `keys`.

    **Raises** `ValueError` listing every key without a counterpart or with another shape, before anything is loaded.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        target = next((re.sub(f"^{old}$", new, name) for old, new in keys.items() if re.fullmatch(old, name)), name)
        renamed[target] = tensor
    if model.head is None:
        renamed.pop("head.weight", None)  # tied: the embedding's copy
    expected = model.state_dict()
    wrong = [
        *(f"{name}: not in the model" for name in renamed.keys() - expected.keys()),
        *(f"{name}: not in the checkpoint" for name in expected.keys() - renamed.keys()),
        *(
            f"{name}: {tuple(renamed[name].shape)} in the checkpoint, {tuple(expected[name].shape)} in the model"
            for name in renamed.keys() & expected.keys()
            if renamed[name].shape != expected[name].shape
        ),
    ]
    if wrong:
        raise ValueError("the checkpoint does not match the model:\n" + "\n".join(sorted(wrong)))
    model.load_state_dict(renamed)


def _mamba(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "d_state": config["state_size"],
        "d_conv": config["conv_kernel"],
        "expand": config["expand"],
        "dt_rank": config["time_step_rank"],
    }


def _mamba2(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "d_state": config["state_size"],
        "d_conv": config["conv_kernel"],
        "expand": config["expand"],
        "head_dim": config["head_dim"],
        "num_groups": config["n_groups"],
    }


_SETTINGS = {"mamba": _mamba, "mamba2": _mamba2}
