"""Where runs are carried out."""

import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path

import torch

from models import ModelConfig
from models.mixers import ALL_MIXERS
from models.settings import SettingError
from recallbench.any_run import AnyRun
from recallbench.execution import ExecutionConfig


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def device_name(device: torch.device) -> str:
    """What a speed belongs to: the GPU's name, or the processor's and how many of its cores this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{_processor()}, {cores} core{'s' * (cores > 1)}"


def _processor() -> str:
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        named = None
    return named[1] if named else platform.processor() or platform.machine()


def check_device(runs: Iterable[AnyRun], execution: ExecutionConfig) -> None:
    """**Raises** `SettingError` where a run, or a mixer of it, cannot be carried out on the device."""
    device = choose_device(execution.device)
    for run in runs:
        run.check_device(device)
    if device.type == "cpu":
        names = {name for run in runs if isinstance(run.model, ModelConfig) for name in run.model.mixer_names}
        for name in sorted(name for name in names if ALL_MIXERS[name].needs_gpu):
            raise SettingError("device", execution.device, f"the mixer {name} runs on a GPU alone")
