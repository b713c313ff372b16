"""Any layer of flash-linear-attention, with its Triton kernels, behind the contract of a mixer.

Source: Yang and Zhang 2024, the package flash-linear-attention (extra `fla`). Its kernels run on a GPU alone.
"""

import importlib.util
import inspect
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import PositiveInt
from torch import Tensor

from models.mixer import Mixer
from models.settings import SettingError


class FlaState(NamedTuple):
    """What fla's cache holds for a layer, by kind, and how many tokens it has seen."""

    held: dict[str, Any]
    length: Tensor  # [B]


class Fla(Mixer):
    """The layer of `fla.layers` called `layer`, with the keywords `options` of its constructor.

    **Raises** `SettingError` where fla is not installed, or has no such layer or option.
    """

    needs_gpu: ClassVar[bool] = True
    stacks: ClassVar[bool] = False  # its kernels know nothing of vmap

    def __init__(self, d_model: PositiveInt, layer: str = "GatedDeltaNet", options: dict[str, Any] | None = None):
        super().__init__()
        if importlib.util.find_spec("fla") is None:
            raise SettingError("layer", layer, "it needs flash-linear-attention: pip install 'recallbench[fla]'")
        import fla.layers  # noqa: PLC0415 - an extra, and slow to import

        kind = getattr(fla.layers, layer, None)
        if kind is None or layer not in fla.layers.__all__:
            raise SettingError("layer", layer, f"it must be one of {', '.join(fla.layers.__all__)}")
        known = inspect.signature(kind).parameters
        if not {"hidden_size", "layer_idx"} <= known.keys():
            raise SettingError("layer", layer, "it must be a layer that keeps a state, and this one keeps none")
        for name in options or {}:
            if name not in known:
                raise SettingError(f"options.{name}", (options or {})[name], f"{layer} takes {', '.join(known)}")
        self.d_model = d_model
        try:
            self.layer = kind(**{"hidden_size": d_model, "layer_idx": 0, **(options or {})})
        except (AssertionError, ValueError, ZeroDivisionError) as error:  # fla checks what it is given in several ways
            raise SettingError("options", options or {}, f"at d_model = {d_model} {layer} says: {error}") from None

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]

    def init_state(self, batch_size, *, max_length=None, dtype=None, device=None) -> FlaState:
        device = self.like_parameters(None, device)["device"]
        return FlaState({}, torch.zeros(batch_size, dtype=torch.int64, device=device))

    def prefill(self, x: Tensor, state: FlaState) -> tuple[Tensor, FlaState]:
        if x.shape[1] == 0:
            return x, state
        from fla.models.utils import Cache  # noqa: PLC0415

        cache = Cache()
        if state.held:
            cache.update(layer_idx=0, offset=int(state.length[0]), **state.held)
        y, _, cache = self.layer(x, past_key_values=cache, use_cache=True)
        held = {kind: value for kind, value in cache[0].items() if value is not None}
        return y, FlaState(held, state.length + x.shape[1])

    def step(self, x: Tensor, state: FlaState) -> tuple[Tensor, FlaState]:
        y, state = self.prefill(x.unsqueeze(1), state)
        return y.squeeze(1), state

    @torch.no_grad()
    def state_bytes(self, length: int, dtype: torch.dtype) -> int:
        """Bytes of state a sequence, weighed: fla does not say its shapes before it has run. Its dtypes are its own."""
        from torch.utils._pytree import tree_leaves  # noqa: PLC0415

        x = torch.zeros(1, length, self.d_model, **self.like_parameters(None, None))
        _, state = self.prefill(x, self.init_state(1))
        leaves = [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
        return sum({leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in leaves}.values())
