"""What runs of every kind are: checked settings, and a name that is their hash."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch

from models import ModelConfig
from models.huggingface import HuggingFaceConfig

Settings = Mapping[str, Any]
StateDtype = Literal["float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]


@dataclasses.dataclass(frozen=True)
class AnyRun:
    """One training or measurement with one resolved configuration, every part of it checked; it gets one record."""

    model: ModelConfig | HuggingFaceConfig
    family: str  # the mixer under study, or the name of the layer pattern
    settings: dict[str, Any]  # every setting by its dotted name, defaults included
    essence: dict[str, Any]  # the settings that can change the result, those at their default left out

    @property
    def identity(self) -> str:
        """The hash of every setting that can change the result, and of nothing else.

        A setting at its default is left out, so that one added later leaves the identities of earlier runs alone.
        """
        return digest(self.essence)

    @property
    def group(self) -> str:
        """Equal for runs that are carried out together."""
        return self.identity

    @property
    def member(self) -> dict[str, Any]:
        """What is its own among the runs of its group, as an entry of `members`."""
        return {}

    @property
    def trained(self) -> "AnyRun":
        """The run whose result this one needs: itself, where it needs none."""
        return self

    def check_device(self, device: torch.device) -> None:
        """**Raises** `SettingError` where it cannot be carried out on a device that its mixers run on."""

    def check_weights(self, runs: str) -> None:
        """**Raises** `SettingError` where the run that it starts from has a record in `runs` without its weights.

        So it is where a record was imported.
        """


def digest(essence: Any) -> str:
    """The hash that names a run of these settings."""
    return hashlib.sha256(json.dumps(essence, sort_keys=True).encode()).hexdigest()[:16]


def flat(tree: Settings) -> dict[str, Any]:
    """Every value of nested settings by its dotted name."""
    return dict(_flatten(tree))


def _flatten(tree: Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
