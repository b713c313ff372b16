"""A study as a union of product grids, written in Hydra's override syntax."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from models.settings import SettingError


def axes_of(config: DictConfig) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
    """`params` and `grids` of a composed configuration, as written: `${model.d_model}` there is that of each point."""
    sweeper: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=False)
    return sweeper["params"], sweeper["grids"]


def expand(
    arguments: Sequence[str],
    params: Mapping[str, Any],
    grids: Sequence[Mapping[str, Any]],
    config_loader: ConfigLoader,
) -> list[tuple[str, ...]]:
    """Every point of a study, as the overrides that make it.

    **Arguments:** `arguments`: overrides from the command line, where `a=1,2` is an axis; they replace an axis of the
    same name below. `params`: axes that all grids share, name -> a list of values, or a string in Hydra's sweep
    syntax. `grids`: each with axes of its own; without any, there is one grid, of the other axes. `config_loader`
    knows the options of a group, for axes such as `mixer=glob(*)`.
    """
    parser = OverridesParser.create(config_loader)
    given = {override.key_or_group: override for override in parser.parse_overrides(list(arguments))}
    points: list[tuple[str, ...]] = []
    for grid in grids or [{}]:
        axes = {key: axis for key, axis in {**params, **grid}.items() if key not in given}
        for key, axis in axes.items():
            if isinstance(axis, Sequence) and not axis:
                raise SettingError(key, axis, "an axis needs at least one value")
        written = parser.parse_overrides([f"{key}={_choices(axis)}" for key, axis in axes.items()])
        values = [
            [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
            if override.is_sweep_override()
            else [str(override.input_line)]
            for override in (*given.values(), *written)
        ]
        points += itertools.product(*values)
    return list(dict.fromkeys(points))


def _choices(axis: Any) -> str:
    if isinstance(axis, str) or not isinstance(axis, Sequence):
        return _written(axis)
    return ",".join(map(_written, axis))


def _written(value: Any) -> str:
    """A value of a study's YAML in Hydra's syntax."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_written(v)}' for key, v in value.items())}}}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(map(_written, value))}]"
    return str(value)
