"""States from chunk to chunk under affine maps: S_{i+1} = T_i S_i + A_i.

A step a chunk, since products of the T would cost K^3 each, and each step one batched product, 2 K^2 V operations a
head. The gradients go back by the same recurrence: with D_i the gradient of S_i as it stands, from all that reads it,
and all of it then E_i,

    E_i = T_i^T E_{i+1} + D_i,   dA_i = E_{i+1},   dT_i = E_{i+1} S_i^T.

To a compiler all this is one operation, not one a chunk, which at 2,048 tokens were most of a model; it copies A and D
once and adds products to them where they stand. Without a compiler each step is one to autograd, as the first call of
an operation of our own imports a compiler.
"""

from typing import Any

import torch
from torch import Tensor


def chunk_states(transition: Tensor, added: Tensor, state: Tensor) -> Tensor:
    """`transition` T [B, H, n, K, K], `added` A [B, H, n, K, V], `state` [B, H, K, V] -> [B, H, n + 1, K, V].

    The state before each chunk and after the last; under autocast in its dtype, as products are.
    """
    kind, dtype = added.device.type, torch.promote_types(transition.dtype, added.dtype)
    if kind != "meta" and torch.is_autocast_enabled(kind):  # which tensors without values know nothing of
        dtype = torch.get_autocast_dtype(kind)
    form = joined_chunk_states if torch.compiler.is_compiling() else _one_by_one
    return form(transition.to(dtype), added.to(dtype), state.to(dtype))


def _one_by_one(transition: Tensor, added: Tensor, state: Tensor) -> Tensor:
    states = [state]
    for T, A in zip(transition.unbind(2), added.unbind(2), strict=True):
        states.append(torch.baddbmm(A.flatten(0, 1), T.flatten(0, 1), states[-1].flatten(0, 1)).view(A.shape))
    return torch.stack(states, dim=2)


@torch.library.custom_op("recallbench::chunk_states", mutates_args=())
def joined_chunk_states(transition: Tensor, added: Tensor, state: Tensor) -> Tensor:
    """As `chunk_states`, all of one dtype, in one operation."""
    states = torch.cat([state.unsqueeze(2), added], dim=2).contiguous()
    T, S = transition.flatten(0, 1), states.flatten(0, 1)
    for i in range(T.shape[1]):
        S[:, i + 1].baddbmm_(T[:, i], S[:, i])
    return states


@joined_chunk_states.register_fake
def _(transition: Tensor, added: Tensor, state: Tensor) -> Tensor:
    B, H, n, K, V = added.shape
    return added.new_empty(B, H, n + 1, K, V)


@torch.library.custom_op("recallbench::chunk_states_backward", mutates_args=())
def _gradients(transition: Tensor, dstates: Tensor) -> Tensor:
    """E [B, H, n + 1, K, V]."""
    whole = dstates.clone(memory_format=torch.contiguous_format)
    T, E = transition.flatten(0, 1), whole.flatten(0, 1)
    for i in reversed(range(T.shape[1])):
        E[:, i].baddbmm_(T[:, i].mT, E[:, i + 1])
    return whole


@_gradients.register_fake
def _(transition: Tensor, dstates: Tensor) -> Tensor:
    return torch.empty_like(dstates, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output)


def _backward(ctx: Any, dstates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    transition, states = ctx.saved_tensors
    whole = _gradients(transition, dstates)
    later = whole[:, :, 1:]
    return later @ states[:, :, :-1].mT, later, whole[:, :, 0]


joined_chunk_states.register_autograd(_backward, setup_context=_save)


def _by_members(operation: Any) -> Any:
    """A rule of `vmap`: members are so many more sequences."""

    def merged(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        stacked = (
            (t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)
            for t, dim in zip(tensors, in_dims, strict=True)
        )
        return operation(*stacked).unflatten(0, (info.batch_size, -1)), 0

    return merged


joined_chunk_states.register_vmap(_by_members(joined_chunk_states))
_gradients.register_vmap(_by_members(_gradients))
