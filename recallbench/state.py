"""State as it is: bytes a sequence, read off the tensors that a model really holds."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models import LanguageModel
from models.huggingface import HuggingFaceModel


def tensors(state: Any) -> Iterator[Tensor]:
    """Every tensor that a state holds, in containers or, for a cache of transformers, in attributes of objects."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors(value)
    elif hasattr(state, "__dict__") and not isinstance(state, type):
        yield from tensors(vars(state))


def storages(state: Any) -> dict[int, tuple[int, int]]:
    """Storage address -> (elements, bytes), so that two views of one storage count once and a slice counts whole."""
    return {
        leaf.untyped_storage().data_ptr(): (
            leaf.untyped_storage().nbytes() // leaf.element_size(),
            leaf.untyped_storage().nbytes(),
        )
        for leaf in tensors(state)
        if leaf.numel()
    }


def by_layer(state: Any) -> Sequence[Any]:
    """The states of the layers, bottom to top."""
    return state if isinstance(state, list) else state.layers


@torch.no_grad()
def measure_state(
    model: LanguageModel | HuggingFaceModel, length: int, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Read `length` tokens of one sequence and weigh the state: elements and bytes, in all and by layer.

    **Arguments:** `dtype`: of the state's floating-point tensors, by default that of the weights.
    """
    weight = next(model.parameters())
    device = weight.device
    positions = torch.arange(length, device=device)[None]
    _, state = model.prefill(positions % model.config.vocab_size, model.init_state(1, dtype=dtype), positions[:, -1:])
    layers = []
    for name, layer_state in zip(model.mixer_names, by_layer(state), strict=True):
        held = storages(layer_state).values()
        layers.append({"mixer": name, "elements": sum(e for e, _ in held), "bytes": sum(b for _, b in held)})
    return {
        "length": length,
        "dtype": str(dtype or weight.dtype).removeprefix("torch."),
        "elements": sum(layer["elements"] for layer in layers),
        "bytes": sum(layer["bytes"] for layer in layers),
        "layers": layers,
    }
