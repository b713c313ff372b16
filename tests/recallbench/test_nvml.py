"""What a GPU says of its energy, its clock and what holds it back."""

import math
import sys
import types

import pytest
import torch

from recallbench.throughput import nvml


def pynvml(reasons):
    """The module, of one GPU with a counter of energy and a clock; `reasons`: what holds it back."""
    module = types.ModuleType("pynvml")
    module.__spec__ = types.SimpleNamespace(name="pynvml")
    module.NVMLError = LookupError
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetHandleByUUID = {"GPU-1234": "handle"}.__getitem__
    module.nvmlDeviceGetTotalEnergyConsumption = {"handle": 2500}.__getitem__
    module.nvmlDeviceGetClockInfo = lambda handle, kind: {"handle": 1980}[handle]
    module.nvmlDeviceGetCurrentClocksThrottleReasons = reasons.__getitem__
    return module


@pytest.mark.parametrize(
    ("uuid", "reasons", "told"),
    [
        ("1234", {"handle": 0x4 | 0x20 | 0x1}, (2.5, 1980, "power cap, software thermal")),
        ("1234", {"handle": 0}, (2.5, 1980, "")),
        ("1234", {}, (2.5, 1980, None)),
        ("of a part", {}, (math.nan, None, None)),
    ],
)
def test_a_gpu_is_asked_what_it_knows(uuid, reasons, told, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", pynvml(reasons))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid=uuid))
    gpu, nothing = nvml.Gpu(torch.device("cuda")), nvml.Gpu(torch.device("cpu"))
    assert (gpu.clock_mhz(), gpu.throttled()) == told[1:]
    assert gpu.joules() == pytest.approx(told[0], nan_ok=True)
    assert math.isnan(nothing.joules())
    assert (nothing.clock_mhz(), nothing.throttled()) == (None, None)
