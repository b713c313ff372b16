"""conf/, composed by Hydra outside its own command line."""

from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

CONFIGURATION = Path(__file__).parent.parent / "conf"


def compose(overrides: Sequence[str], config_name: str = "config") -> DictConfig:
    """The configuration that the overrides make of `conf/CONFIG_NAME.yaml`. **Raises** what Hydra raises."""
    with hydra.initialize_config_dir(str(CONFIGURATION), version_base="1.3"):
        return hydra.compose(config_name, overrides=list(overrides))
