"""Workers of one GPU side by side: a Multi-Process Service of NVIDIA's for as long as a launch lasts.

Without it the processes of a GPU take turns at it, so that a small model leaves most of it idle whoever else waits:
three workers then get less done than one. Source: NVIDIA, Multi-Process Service, chapters 1 and 5.
"""

import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sweeps.pool import Place

CONTROL = "nvidia-cuda-mps-control"
PATIENCE = 30
"""Seconds that the service has to start, and to end."""


@contextmanager
def side_by_side(places: Sequence[Place]) -> Iterator[Sequence[Place]]:
    """The places, within reach of a service where several of them share a GPU and there is none yet.

    Where it cannot be started they stay as they are.
    """
    workers = Counter(place["CUDA_VISIBLE_DEVICES"] for place in places if "CUDA_VISIBLE_DEVICES" in place)
    if max(workers.values(), default=0) < 2 or "CUDA_MPS_PIPE_DIRECTORY" in os.environ or shutil.which(CONTROL) is None:
        yield places
        return
    # A socket's path may have some hundred characters, so not in the folder of the runs.
    with tempfile.TemporaryDirectory(prefix="mps-", ignore_cleanup_errors=True) as folder:
        reach = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        if not _control(reach, "-d"):
            yield places
            return
        try:
            yield [{**place, **reach} for place in places]
        finally:
            _control(reach, commands=f"quit -t {PATIENCE}\n")


def _control(reach: Place, *arguments: str, commands: str = "") -> bool:
    # For all GPUs of the machine: among those of a service, its clients would have to count anew.
    own = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    try:
        done = subprocess.run(
            [CONTROL, *arguments],
            input=commands,
            env={**own, **reach},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
