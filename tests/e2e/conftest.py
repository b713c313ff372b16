"""The command line called in this process, which spares the seconds of importing torch."""

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from recallbench.__main__ import main

TINY = {
    "task.vocab_size": 32,
    "task.sequence_length": 16,
    "task.num_kv_pairs": 2,
    "task.num_examples": 32,
    "task.num_test_examples": 16,
    "model.d_model": 8,
    "train.batch_size": 16,
    "train.epochs": 1,
    "device": "cpu",
}


class Called(NamedTuple):
    """How a call ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def tiny() -> Callable[..., list[str]]:
    """Arguments for a tiny run, and others; one of the same name takes the place of a tiny one."""

    def arguments(*others: str) -> list[str]:
        flags = [other for other in others if other == "-m"]  # Hydra wants them first
        named = {other.lstrip("+~").partition("=")[0] for other in others}
        own = [f"{name}={value}" for name, value in TINY.items() if name not in named]
        return [*flags, *own, *(other for other in others if other not in flags)]

    return arguments


@pytest.fixture
def call(monkeypatch, capsys, tmp_path) -> Callable[..., Called]:
    """`python -m recallbench` with some arguments, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def called(*arguments: str) -> Called:
        monkeypatch.setattr(sys, "argv", ["recallbench", *arguments, "hydra/launcher=basic"])  # in this process
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as ended:
            status = ended.code
        return Called(status, *capsys.readouterr())

    yield called
    torch.set_num_threads(threads)
