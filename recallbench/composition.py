"""conf/, composed by Hydra outside its own command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from models.settings import SettingError

CONFIGURATION = Path(__file__).parent.parent / "conf"


def compose(overrides: Sequence[str], config_name: str = "config") -> DictConfig:
    """The configuration that the overrides make of `conf/CONFIG_NAME.yaml`. **Raises** what Hydra raises."""
    with hydra.initialize_config_dir(str(CONFIGURATION), version_base="1.3"):
        return hydra.compose(config_name, overrides=list(overrides))


def plain(config: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain values, without Hydra's own part.

    **Raises** `SettingError` for an interpolation that leads nowhere, or a value that must be given and is not.
    """
    settings = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        return cast("dict[str, Any]", OmegaConf.to_container(settings, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        raise SettingError(error.full_key or "a setting", None, "it must be given") from None
    except OmegaConfBaseException as error:
        absent = str(error).splitlines()[0].removeprefix("Interpolation key ").removesuffix(" not found").strip("'")
        expected = f"{absent} does not exist; choose a configuration that has it"
        raise SettingError(error.full_key or absent, f"${{{absent}}}", expected) from None
