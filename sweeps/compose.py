"""Composing many points quickly: the choices of groups once, the values of each point on top of that."""

import copy
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from recallbench.any_run import Settings
from recallbench.composition import plain

REFERENCE = re.compile(r"\$\{(\w+(?:\.\w+)*)\}")
"""An interpolation that is another setting's value and nothing else."""


class Composer:
    """From a point's overrides to its settings, as plain values, without Hydra's own part.

    Hydra composes a configuration in some 100 ms, nearly all of it for choosing among files. Points of a study share
    those choices and differ in values. Set on a copy of Hydra's objects these take milliseconds, and microseconds on
    plain dictionaries, which serve wherever a value is no mapping and no more is interpolated than another setting.

    **Arguments:** `load`: Hydra's own composition, from overrides; `config_loader`: knows which names are groups.
    """

    def __init__(self, load: Callable[[list[str]], DictConfig], config_loader: ConfigLoader):
        self.load = load
        self.is_group = functools.cache(lambda name: bool(config_loader.get_group_options(name)))
        parser = OverridesParser.create(config_loader)
        self.parse = functools.cache(parser.parse_override)
        self.chosen: dict[tuple[str, ...], tuple[DictConfig, dict[str, Any]]] = {}

    def __call__(self, point: Sequence[str]) -> Settings:
        """**Raises** what Hydra raises for an override that fits nowhere, and `SettingError` as `plain` does."""
        parsed = [(text, self.parse(text)) for text in point]
        values = [override for _, override in parsed if self._sets_a_value(override)]
        choices = tuple(text for text, override in parsed if not self._sets_a_value(override))
        if choices not in self.chosen:
            composed = self.load(list(choices))
            config = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
            self.chosen[choices] = config, OmegaConf.to_container(config)  # pyright: ignore[reportArgumentType]
        config, settings = self.chosen[choices]
        try:
            for override in values:
                settings = _with(settings, override.key_or_group.split("."), override.value())
            return _resolved(settings, settings)
        except _NotPlainError:
            return self._by_omegaconf(point, config, values)

    def _by_omegaconf(self, point: Sequence[str], config: DictConfig, values: Sequence[Override]) -> Settings:
        config = copy.deepcopy(config)
        for override in values:
            if OmegaConf.select(config, override.key_or_group, default=_ABSENT) is _ABSENT:
                return plain(self.load(list(point)))  # for Hydra's own words on it
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        return plain(config)

    def _sets_a_value(self, override: Override) -> bool:
        plain = not (override.is_add() or override.is_delete() or override.is_hydra_override())
        return plain and not self.is_group(override.key_or_group)


_ABSENT = object()


class _NotPlainError(Exception):
    """Plain dictionaries do not say what this comes to."""


def _with(settings: dict[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy with another value at a path, which shares all that is beside the path."""
    key, *rest = path
    if key not in settings or isinstance(settings[key], dict) != bool(rest) or isinstance(value, dict):
        raise _NotPlainError
    return {**settings, key: _with(settings[key], rest, value) if rest else value}


def _resolved(tree: Any, settings: dict[str, Any]) -> Any:
    """The tree with the values that it refers to."""
    if isinstance(tree, dict):
        return {key: _resolved(value, settings) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_resolved(value, settings) for value in tree]
    if not isinstance(tree, str) or not ("$" in tree or tree == "???"):
        return tree
    found = REFERENCE.fullmatch(tree)
    value: Any = settings
    for key in found[1].split(".") if found else ():
        value = value.get(key, tree) if isinstance(value, dict) else tree
    if not found or isinstance(value, dict | list) or (isinstance(value, str) and ("$" in value or value == "???")):
        raise _NotPlainError
    return value
