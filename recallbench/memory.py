"""Memory: how much was held at once, and which errors say that there was too little of it."""

import resource
import sys

import torch


def out_of_memory(error: BaseException) -> bool:
    """CUDA has an exception of its own for it; the CPU allocator raises a RuntimeError that only its text tells.

    So does an error on the way out of it: the recording of a graph ends with one of its own.
    """
    full = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
    return full or (error.__context__ is not None and out_of_memory(error.__context__))


def peak_memory(device: torch.device) -> int:
    """The most bytes held at once: on a GPU since its statistics were reset, on a CPU by the process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
