"""Which implementation computes what: the one place that chooses, by device, dtype and shape.

Every kernel has a reference in plain PyTorch beside it, which defines what it computes and runs anywhere. A Triton
kernel is chosen on a GPU where it serves, as `KERNELS` says. A call's `backend` overrules that, and so does `using` for
all calls within: `throughput.backend=reference` measures the references.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from triton import knobs

Backend = Literal["reference", "triton", "fla"]
"""`fla`: flash-linear-attention's kernels where there are some (`kernels/recurrences_of_fla.py`), else what serves."""

WIDE = (torch.float32, torch.bfloat16, torch.float16)
NARROW = (torch.float8_e4m3fn, torch.float8_e5m2)


class Serves(NamedTuple):
    """What a Triton kernel takes; all of it is any strides, unless it is a state that is updated in place."""

    sizes: dict[str, tuple[int, int]] = {}  # noqa: RUF012 - the least and the most of each
    state: tuple[torch.dtype, ...] = WIDE
    """The dtypes in which a state may be stored; sums are in float32."""
    gradient: bool = False
    """Whether it has a backward pass."""
    contiguous: bool = False
    """Whether its state must be."""


KERNELS = {
    # At K = 4 and V = 48 the gradient of the queries was wrong on an H100 (triton 3.6); its other tests pass there.
    "taylor_attention": Serves({"K": (5, 32), "V": (1, 128)}, gradient=True),
    "taylor_attention_step": Serves({"K": (1, 32), "V": (1, 256)}, WIDE + NARROW, contiguous=True),
    "attention_step": Serves({"K": (1, 256), "V": (1, 256)}, contiguous=True),
    "sliding_window": Serves({"K": (1, 256), "V": (1, 256)}, gradient=True),
    "sliding_window_float32": Serves({"K": (1, 128), "V": (1, 128)}, gradient=True),
    "sliding_window_step": Serves({"K": (1, 256), "V": (1, 256)}, contiguous=True),
    "based_step": Serves({"K": (1, 32), "V": (1, 256), "window_K": (1, 256), "window_V": (1, 256)}, contiguous=True),
    "short_conv": Serves({"k": (2, 8)}, gradient=True),
    "short_conv_step": Serves({"k": (2, 8)}, contiguous=True),
    "selective_scan": Serves({"S": (1, 256)}, gradient=True),
    "selective_scan_step": Serves({"S": (1, 256)}),
    "decay_attention": Serves({"K": (1, 128), "V": (1, 128)}, gradient=True),
    "decay_attention_float32": Serves({"K": (1, 64), "V": (1, 128)}, gradient=True),
    "unit_triangular_solve": Serves({"C": (2, 32)}, gradient=True),
    "cross_entropy": Serves({"D": (1, 256)}, gradient=True),
    "cross_entropy_chunks": Serves(gradient=True),
}

INTERPRETED = knobs.runtime.interpret
"""Whether Triton runs kernels in its interpreter, on a CPU too: fixed when it is imported."""

_asked: Backend | None = None


@contextmanager
def using(backend: Backend | None) -> Iterator[None]:
    """Calls within, of this process, take `backend` where they do not name one themselves; None: what serves."""
    global _asked  # noqa: PLW0603 - a variable that torch.compile can guard, which a context variable is not
    before, _asked = _asked, backend
    try:
        yield
    finally:
        _asked = before


def asked(backend: Backend | None) -> Backend | None:
    """What a call asks for, or else the innermost `using` around it."""
    return backend or _asked


def takes_triton(
    kernel: str, backend: Backend | None, inputs: Sequence[Tensor], state: Sequence[Tensor] = (), **sizes: int
) -> bool:
    """Whether a call goes to the Triton kernel; to none where there is nothing to compute.

    **Raises** `ValueError` where Triton is asked for and its kernel does not serve.
    """
    wanted = asked(backend)
    if wanted == "reference" or any(t.numel() == 0 for t in inputs):
        return False
    if wanted != "triton":
        return inputs[0].is_cuda and obstacle(kernel, inputs, state, sizes) is None
    in_the_way = obstacle(kernel, inputs, state, sizes)
    if in_the_way:
        raise ValueError(f"{kernel} {in_the_way}; backend=reference computes it")
    return True


def obstacle(kernel: str, inputs: Sequence[Tensor], state: Sequence[Tensor], sizes: dict[str, int]) -> str | None:
    """Why the Triton kernel does not serve, the rest of a sentence; None where it does."""
    serves = KERNELS[kernel]
    if not _runs_on(inputs[0].device):
        return f"got tensors on {inputs[0].device}, and its kernel takes those on a GPU"
    for what, tensors, dtypes in (("an input", inputs, WIDE), ("a state", state, serves.state)):
        for t in tensors:
            if t.dtype not in dtypes:
                names = ", ".join(str(dtype) for dtype in dtypes)
                return f"got {what} in {t.dtype}, and its kernel takes {names}"
    for name, size in sizes.items():
        least, most = serves.sizes[name]
        if not least <= size <= most:
            return f"got {name} = {size}, and its kernel takes {name} from {least} to {most}"
    if serves.contiguous and not all(t.is_contiguous() for t in state):
        return "got a state that is not contiguous, and its kernel updates it in place"
    if not serves.gradient and torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, *state)):
        return "got a tensor that requires a gradient, and its kernel has none"
    return None


def _runs_on(device: torch.device) -> bool:
    """On a GPU, or anywhere in Triton's interpreter."""
    return device.type == "cuda" or INTERPRETED
