"""Composing many points quickly: the choices of groups once, the values of each point on a copy of that."""

import copy
import functools
from collections.abc import Callable, Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf


class Composer:
    """From a point's overrides to its configuration, without Hydra's own part.

    Hydra composes a configuration in some 100 ms, nearly all of it for choosing among files. Points of a study share
    those choices and differ in values, which take about a millisecond to set.

    **Arguments:** `load`: Hydra's own composition, from overrides; `config_loader`: knows which names are groups.
    """

    def __init__(self, load: Callable[[list[str]], DictConfig], config_loader: ConfigLoader):
        self.load = load
        self.is_group = functools.cache(lambda name: bool(config_loader.get_group_options(name)))
        self.parser = OverridesParser.create(config_loader)
        self.chosen: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, point: Sequence[str]) -> DictConfig:
        """**Raises** what Hydra raises for an override that fits nowhere."""
        parsed = list(zip(point, self.parser.parse_overrides(list(point)), strict=True))
        values = [override for _, override in parsed if self._sets_a_value(override)]
        choices = tuple(text for text, override in parsed if override not in values)
        if choices not in self.chosen:
            composed = self.load(list(choices))
            self.chosen[choices] = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        config = copy.deepcopy(self.chosen[choices])
        for override in values:
            if OmegaConf.select(config, override.key_or_group, default=_ABSENT) is _ABSENT:
                return self.load(list(point))  # for Hydra's own words on it
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        return config

    def _sets_a_value(self, override: Override) -> bool:
        plain = not (override.is_add() or override.is_delete() or override.is_hydra_override())
        return plain and not self.is_group(override.key_or_group)


_ABSENT = object()
