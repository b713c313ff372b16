"""State as it is: bytes a sequence, read off the tensors that a model really holds."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from models import LanguageModel


def storages(state: Any) -> dict[int, tuple[int, int]]:
    """Storage address -> (elements, bytes), so that two views of one storage count once and a slice counts whole."""
    leaves = [leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor) and leaf.numel()]
    return {
        leaf.untyped_storage().data_ptr(): (
            leaf.untyped_storage().nbytes() // leaf.element_size(),
            leaf.untyped_storage().nbytes(),
        )
        for leaf in leaves
    }


@torch.no_grad()
def measure_state(model: LanguageModel, length: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Read `length` tokens of one sequence and weigh the state: elements and bytes, in all and by layer."""
    device = model.embedding.weight.device
    tokens = torch.arange(length, device=device)[None] % model.config.vocab_size
    _, state = model.prefill(tokens, model.init_state(1, dtype=dtype))
    layers = []
    for name, layer_state in zip(model.config.mixer_names, state, strict=True):
        held = storages(layer_state).values()
        layers.append({"mixer": name, "elements": sum(e for e, _ in held), "bytes": sum(b for _, b in held)})
    return {
        "length": length,
        "dtype": str(dtype).removeprefix("torch."),
        "elements": sum(layer["elements"] for layer in layers),
        "bytes": sum(layer["bytes"] for layer in layers),
        "layers": layers,
    }
