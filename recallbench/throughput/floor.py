"""What a step or a prompt cannot do without: the bytes that must pass through memory, the operations of its products.

Bytes of a decode step: weights, read once, of an embedding that is no head only the rows of the batch's tokens; the
state of every row, read; and of it what the step changes, written. Caches write one token and recurrences all of it,
so this is counted in a real step. Bytes of a prefill: weights, tokens, the final state and the logits.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models import LanguageModel, build_model
from models.huggingface import HuggingFaceModel
from models.mixers import ALL_MIXERS
from recallbench.state import by_layer, measure_state, storages, tensors
from recallbench.throughput.machine import Rates
from recallbench.throughput.measurement import Measurement

Model = LanguageModel | HuggingFaceModel


class Floor(NamedTuple):
    """Bytes that must be moved, and operations of matrix products and attention, in one step or one prefill."""

    bytes: int
    flops: int

    def seconds(self, rates: Rates) -> float:
        """The least time that the device could do it in."""
        return max(self.bytes / rates.bytes_per_second, self.flops / rates.flops_per_second)


def floor(run: Measurement, model: Model, batch_size: int) -> Floor:
    """That of one step, halfway through what is generated, or of one prefill."""
    B, N = batch_size, run.throughput.prompt_length
    if run.throughput.kind == "decode":
        N += run.throughput.generate // 2
        held = measure_state(model, N, run.state_dtype)["bytes"]
        moved = weights_read(model, B) + B * (held + written(model, N, run.state_dtype))
    else:
        logits = model.head_weight.shape[0] * run.dtype.itemsize
        state = measure_state(model, N, run.state_dtype)["bytes"]
        moved = weights_read(model, B * N) + B * (N * torch.int64.itemsize + state + logits)
    return Floor(moved, B * flops(run, model, N))


def weight_bytes(model: Model) -> int:
    """All parameters and buffers, those that are tied once."""
    return sum(size for _, size in storages([*model.parameters(), *model.buffers()]).values())


def weights_read(model: Model, tokens: int) -> int:
    """Those that reading so many tokens at once needs."""
    table, total = model.embedding.weight, weight_bytes(model)
    if table.data_ptr() == model.head_weight.data_ptr():
        return total
    rows, width = table.shape
    return total - (rows - min(tokens, rows)) * width * table.element_size()


def written(model: Model, length: int, state_dtype: torch.dtype) -> int:
    """Bytes of a row's state, of tokens drawn at random, that a step after `length` of them changes.

    Counted with the state in float32, where it can have that: in fewer bits a recurrence rounds some changes away, and
    writes them all the same.
    """
    device = next(model.parameters()).device
    wide = torch.float32 if isinstance(model, LanguageModel) else state_dtype
    tokens = torch.randint(model.config.vocab_size, (1, length + 1), device=device)
    last = torch.full((1, 1), length - 1, device=device)
    _, state = model.prefill(tokens[:, :-1], model.init_state(1, max_length=length + 1, dtype=wide), last)
    before = [leaf.clone() for leaf in _leaves(state)]
    _, state = model.step(tokens[:, -1], state)
    changed = 0
    for old, new in zip(before, _leaves(state), strict=True):
        count = int((old != new).sum()) if old.shape == new.shape else new.numel() - old.numel()
        changed += count * (state_dtype if new.is_floating_point() else new.dtype).itemsize
    return changed


def _leaves(state: Any) -> list[Tensor]:
    return [leaf for layer in by_layer(state) for leaf in tensors(layer)]


def flops(run: Measurement, model: Model, length: int) -> int:
    """Operations a row of a prefill of `length` tokens, or of a step after them.

    Counted in the form that is written in PyTorch, which is all that a counter sees into; on tensors without values,
    unless a mixer has none but kernels of its own.
    """
    plain = isinstance(model, LanguageModel) and not any(ALL_MIXERS[name].needs_gpu for name in model.mixer_names)
    device = torch.device("meta") if plain else next(model.parameters()).device
    if plain:
        with device:
            model = build_model(run.model).to(run.dtype).requires_grad_(False)
    tokens = torch.zeros(1, length, dtype=torch.int64, device=device)
    last = torch.full((1, 1), length - 1, device=device)
    decodes = run.throughput.kind == "decode"
    room = length + 1 if decodes else None
    counter = FlopCounterMode(display=False)
    state = model.init_state(1, max_length=room, dtype=run.state_dtype)
    if decodes:
        _, state = model.prefill(tokens, state, last)
        with counter:
            model.step(tokens[:, 0], state)
    else:
        with counter:
            model.prefill(tokens, state, last)
    return counter.get_total_flops()
