"""Carrying out measurements."""

from collections.abc import Sequence

from recallbench.device import check_device
from recallbench.execution import ExecutionConfig
from recallbench.interrupt import StopRequest
from recallbench.one_by_one import one_by_one
from recallbench.throughput.measure import measure
from recallbench.throughput.measurement import Measurement


def execute(runs: Sequence[Measurement], execution: ExecutionConfig, stop: StopRequest) -> None:
    """As `one_by_one`. **Raises** `SettingError`, too, for what this device cannot do, or is not."""
    check_device(runs, execution)
    one_by_one(runs, lambda directory, device, stop: measure(directory.run, device, stop), execution, stop)
