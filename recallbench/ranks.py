"""Processes that train one run together, each on a GPU of its own: started by torchrun, or as the tasks of a srun.

    torchrun --nproc-per-node=2 -m recallbench task=lm ...
    srun --ntasks=2 --gpus-per-task=1 python -m recallbench task=lm ...

All compute; rank 0 alone claims, writes and reports. Without either, a process is the only rank, and these functions
leave everything as it is.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(hours=2)
"""How long a rank waits for another, which may be measuring or writing."""

SLURM = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")


def rank() -> int:
    """This process among those that were started together."""
    return int(os.environ.get("RANK", os.environ["SLURM_PROCID"] if _by_slurm() else 0))


def size() -> int:
    """How many were started together."""
    return int(os.environ.get("WORLD_SIZE", os.environ["SLURM_STEP_NUM_TASKS"] if _by_slurm() else 1))


def alone(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that is nobody's rank."""
    return {k: v for k, v in environment.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", *SLURM)}


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """The ranks find each other, and each takes its GPU, for the time of the block."""
    if size() == 1:
        yield
        return
    if _by_slurm():  # torchrun sets these itself
        port = 20000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20000
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(port))
    backend = "gloo"
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
        torch.cuda.set_device(local % torch.cuda.device_count())  # SLURM may show each task its own GPU alone
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, rank=rank(), world_size=size(), timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def add(tensors: Sequence[Tensor]) -> None:
    """The sum over ranks of each, in place."""
    if not dist.is_initialized():
        return
    together = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(together)
    for tensor, total in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def anyone(flag: bool) -> bool:
    """Whether it is so of any rank; all agree."""
    if not dist.is_initialized():
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def from_first(message: Any = None) -> Any:
    """What rank 0 says, to all."""
    if not dist.is_initialized():
        return message
    held = [message]
    dist.broadcast_object_list(held, device=torch.device("cpu"))
    return held[0]


def copy_first(tensors: Sequence[Tensor]) -> None:
    """Every rank takes over the tensors of rank 0, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def _by_slurm() -> bool:
    """Whether srun started this process as one of several tasks, which sbatch's own shell is not."""
    return "RANK" not in os.environ and all(n in os.environ for n in SLURM) and os.environ[SLURM[0]] != "1"
