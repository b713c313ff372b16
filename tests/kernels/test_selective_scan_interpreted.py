"""Runs test_selective_scan_triton.py where there is no GPU.

Triton fixes whether it interprets when it is first imported, and other tests may have imported it by then; hence a
process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="test_selective_scan_triton.py runs on the GPU itself")
def test_kernels_in_the_interpreter():
    tests = Path(__file__).with_name("test_selective_scan_triton.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", str(tests)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command,
        env={**environment, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
