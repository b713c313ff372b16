"""Where a result comes from: code and package versions, device, host, time."""

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from recallbench.device import device_name

PACKAGES = ("torch", "triton", "numpy", "pydantic", "hydra-core")


def provenance(device: torch.device, members: int) -> dict[str, Any]:
    """Where a result comes from: code and package versions, device, host, time, and how many members trained along."""
    return {
        "code_version": code_version(),
        "packages": {package: _version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "device": device_name(device),
        "host": platform.node(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "members": members,
    }


@functools.cache
def code_version() -> str:
    """The commit of the checkout that runs, marked where it has uncommitted changes, or else a hash of the sources."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    tracked = subprocess.run([*command[:3], "ls-files", "--error-unmatch", __file__], capture_output=True, check=False)
    if tracked.returncode == 0:
        described = subprocess.run(command, capture_output=True, text=True, check=False)
        if described.returncode == 0:
            return described.stdout.strip()
    sources = hashlib.sha256()
    for room in ("kernels", "models", "recallbench"):
        for file in sorted((here.parent / room).rglob("*.py")):
            sources.update(file.read_bytes())
    return f"sources {sources.hexdigest()[:12]}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
