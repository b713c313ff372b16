"""Recurrences of linear attention by flash-linear-attention's own kernels, on a GPU that has it installed.

Its kernels multiply in bfloat16 or float16, and take queries, keys and values as [B, N, H, *], which ours are in
memory. Source: Yang and Zhang 2024, the package flash-linear-attention (extra `fla`).
"""

# Behind fla's decorators its functions have lost their types.
# pyright: reportCallIssue=false, reportArgumentType=false

import importlib.util
import re

import torch
import triton
from torch import Tensor

from kernels.backend import Backend, asked

INSTALLED = importlib.util.find_spec("fla") is not None
HALVES = (torch.bfloat16, torch.float16)
TRITON = tuple(int(part) for part in re.findall(r"\d+", triton.__version__)[:3])

Result = tuple[Tensor, Tensor]
"""Outputs [B, H, N, V], and the state after all N tokens [B, H, K, V] in float32."""


def takes_fla(backend: Backend | None, v: Tensor) -> bool:
    """Whether a call with values `v` goes to fla: where it is asked for, and never else.

    Its kernels made an illegal access on an H200 (triton 3.6), and a gradient that is wrong (`delta_rule`).

    **Raises** `ValueError` where it is asked for and does not serve.
    """
    if asked(backend) != "fla" or v.numel() == 0:
        return False
    if not INSTALLED:
        raise ValueError("backend=fla needs flash-linear-attention: pip install 'recallbench[fla]'")
    if not v.is_cuda or v.dtype not in HALVES:
        raise ValueError(
            f"backend=fla got values in {v.dtype} on {v.device}, and takes bfloat16 or float16 on a GPU;"
            " backend=reference computes them"
        )
    return True


def gated_linear_attention(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None) -> Result:
    """As `kernels.gated_linear_attention`."""
    from fla.ops.gla import chunk_gla  # noqa: PLC0415 - an extra, and slow to import

    q, k, v = _turned(v.dtype, q, k, v)
    return _result(chunk_gla(q, k, v, *_turned(torch.float32, log_decay), scale=1.0, **_states(state)))


def delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor) -> Result:
    """As `kernels.delta_rule`.

    **Raises** `ValueError` where a gradient is needed on Hopper with triton 3.4 to 3.7.0. With decays it is wrong there
    (fla's issue 640); without, that of q differed by 0.96 of its norm on an H200 with triton 3.6.
    """
    needed = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (q, k, v, beta, log_decay, state)
    )
    if needed and miscompiled(v.device):
        raise ValueError(
            f"backend=fla got triton {triton.__version__} on a Hopper GPU, where the gradient of its delta rule is"
            " wrong, and takes 3.7.1 or newer; backend=reference computes it"
        )
    from fla.ops.delta_rule import chunk_delta_rule  # noqa: PLC0415
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule  # noqa: PLC0415

    q, k, v = _turned(v.dtype, q, k, v)
    if log_decay is None:
        (beta,) = _turned(v.dtype, beta)
        return _result(chunk_delta_rule(q, k, v, beta=beta, scale=1.0, **_states(state)))
    beta, g = _turned(torch.float32, beta, log_decay)
    return _result(chunk_gated_delta_rule(q, k, v, g=g, beta=beta, scale=1.0, **_states(state)))


def diagonal_delta_rule(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor) -> Result:
    """As `kernels.diagonal_delta_rule`."""
    from fla.ops.rwkv7 import chunk_rwkv7  # noqa: PLC0415

    r, k, v, a, b = _turned(v.dtype, r, k, v, a, b)
    return _result(chunk_rwkv7(r, *_turned(torch.float32, log_w), k, v, a, b, scale=1.0, **_states(state)))


def miscompiled(device: torch.device) -> bool:
    """Whether triton makes a wrong gradient of fla's delta rule there."""
    return torch.cuda.get_device_capability(device)[0] == 9 and (3, 4, 0) <= TRITON < (3, 7, 1)


def _turned(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """[B, H, N, ...] -> [B, N, H, ...]."""
    return [t.transpose(1, 2).to(dtype) for t in tensors]


def _states(state: Tensor | None) -> dict[str, object]:
    return {"initial_state": None if state is None else state.float(), "output_final_state": True}


def _result(found: Result) -> Result:
    y, final = found
    return y.transpose(1, 2), final
