"""What NVIDIA's management library says of a GPU, where pynvml is there to ask it: energy, clock, what held it back."""

import importlib
import importlib.util
import math
from typing import Any

import torch

REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}
"""Bits of NVML's reasons for a lower clock; the others are an idle GPU's and those of settings."""

LEAST = 0.5
"""Seconds below which energy is not told: the counter moves ten times a second or so."""


class Gpu:
    """One GPU. Without it, or without NVML, what is asked for is None, and of energy NaN."""

    def __init__(self, device: torch.device):
        self.nvml: Any = None
        if device.type != "cuda" or importlib.util.find_spec("pynvml") is None:
            return
        nvml = importlib.import_module("pynvml")
        try:
            nvml.nvmlInit()
            uuid = torch.cuda.get_device_properties(device).uuid
            self.handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except nvml.NVMLError:  # a part of a GPU, or a container that keeps NVML out
            return
        self.nvml = nvml

    def joules(self) -> float:
        """Energy since the driver was loaded."""
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return math.nan if millijoules is None else millijoules / 1000

    def clock_mhz(self) -> int | None:
        """Of its processors, now."""
        return self._ask("nvmlDeviceGetClockInfo", 1)

    def throttled(self) -> str | None:
        """What keeps the clock down now, empty where nothing does."""
        bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if bits is None else ", ".join(name for bit, name in REASONS.items() if bits & bit)

    def _ask(self, function: str, *arguments: Any) -> Any:
        if self.nvml is None:
            return None
        try:
            return getattr(self.nvml, function)(self.handle, *arguments)
        except self.nvml.NVMLError:  # not every GPU has every sensor
            return None
