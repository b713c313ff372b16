"""From the groups `model` and `mixer` of a configuration to a model's checked settings."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from models import Mixer, ModelConfig, build_model
from models.huggingface import HuggingFaceConfig
from models.language_model import build_mixer, check_model
from models.mixers import ALL_MIXERS
from models.settings import SettingError, attempt, check, schema
from recallbench.any_run import Settings

UNDER_STUDY = "mixer"
"""In `model.layers`, the layer whose mixer and settings are the configuration group `mixer`."""


class ResolvedModel(NamedTuple):
    """A model's checked settings, and what they contribute to those of a run."""

    config: ModelConfig | HuggingFaceConfig
    family: str
    settings: dict[str, Any]  # the parts `model` and, where it is under study, `mixer`
    essence: dict[str, Any]  # as in `AnyRun`


def resolve_model(config: Settings, vocab_size: int, errors: list[SettingError]) -> ResolvedModel | None:
    """The model of the groups `model` and `mixer`, or None with what is wrong with it added to `errors`."""
    before = len(errors)
    label = config["model"].get("family")
    if not isinstance(label, str | None):
        errors.append(SettingError("model.family", label, "it must be a word, or null"))
    layers = config["model"].get("layers")
    model = attempt(errors, "model", lambda: _check_model(config["model"], config["mixer"], vocab_size))
    if isinstance(model, HuggingFaceConfig):
        with torch.device("meta"):
            attempt(errors, "model", lambda: build_model(model))
    elif model and layers:
        for i, layer in enumerate(model.layers):
            with torch.device("meta"):
                where = "mixer" if layers[i] == UNDER_STUDY else f"model.layers[{i}]"
                attempt(errors, where, lambda layer=layer: _try_layer(layer, model.d_model))
    if model is None or len(errors) > before:
        return None
    settings = {"model": {"family": label, **_model_settings(model, defaults=True)}}
    if UNDER_STUDY in (layers or []):
        settings["mixer"] = named(ALL_MIXERS, config["mixer"], defaults=True)
    family = label or (Path(model.name).name if isinstance(model, HuggingFaceConfig) else config["mixer"]["name"])
    return ResolvedModel(model, family, settings, _model_settings(model, defaults=False))


def _model_settings(model: ModelConfig | HuggingFaceConfig, defaults: bool) -> dict[str, Any]:
    settings = model.model_dump(mode="json", exclude_defaults=not defaults)
    if isinstance(model, ModelConfig):
        settings["layers"] = [named(ALL_MIXERS, layer, defaults) for layer in cast("list[Settings]", model.layers)]
    return settings


def _check_model(group: Settings, mixer: Settings, vocab_size: int) -> ModelConfig | HuggingFaceConfig:
    """The model's settings, each of its layers a mapping."""
    settings = {key: value for key, value in group.items() if key != "family"}
    if isinstance(layers := settings.get("layers"), list):
        settings["layers"] = [_layer(i, entry, mixer) for i, entry in enumerate(layers)]
    return check_model({**settings, "vocab_size": vocab_size})


def _layer(i: int, entry: Any, mixer: Settings) -> dict[str, Any]:
    if entry == UNDER_STUDY:
        return dict(mixer)
    if not isinstance(entry, str | dict):
        expected = "it must be the name of a mixer, or a mapping of its name and settings"
        raise SettingError(f"layers[{i}]", entry, expected)
    return {"name": entry} if isinstance(entry, str) else entry


def _try_layer(layer: Any, d_model: int) -> None:
    if "d_model" in layer:  # it would pass for a setting of the mixer's own
        raise SettingError("d_model", layer["d_model"], "it must be left to model.d_model")
    _try_mixer(ALL_MIXERS.get(layer.get("name", "")), json.dumps(layer), d_model)


@functools.lru_cache(maxsize=1024)
def _try_mixer(mixer: type[Mixer] | None, layer: str, d_model: int) -> None:
    """Build a mixer, once for all points of a study that have it; `mixer`: what goes by its name just now."""
    build_mixer(json.loads(layer), d_model)


def named(registry: Mapping[str, Any], group: Settings, defaults: bool = False) -> dict[str, Any]:
    """The name of an entry and its settings as plain JSON values, those at their default left out unless asked for."""
    model = schema(registry[group["name"]])
    given = {**({"d_model": 1} if "d_model" in model.model_fields else {}), **unnamed(group)}
    values = check(model, given).model_dump(mode="json", exclude_defaults=not defaults)
    return {"name": group["name"], **{key: value for key, value in values.items() if key != "d_model"}}


def unnamed(group: Settings) -> dict[str, Any]:
    """A group's settings, without the name of the entry that they are for."""
    return {key: value for key, value in group.items() if key != "name"}
