"""Where runs are carried out."""

from collections.abc import Iterable

import torch

from models import ModelConfig
from models.mixers import ALL_MIXERS
from models.settings import SettingError
from recallbench.config import ExecutionConfig, Run


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def check_device(runs: Iterable[Run], execution: ExecutionConfig) -> None:
    """**Raises** `SettingError` where a mixer does not run on the device."""
    if choose_device(execution.device).type == "cpu":
        names = {name for run in runs if isinstance(run.model, ModelConfig) for name in run.model.mixer_names}
        for name in sorted(name for name in names if ALL_MIXERS[name].needs_gpu):
            raise SettingError("device", execution.device, f"the mixer {name} runs on a GPU alone")
