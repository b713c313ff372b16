"""Queries, keys and values of softmax attention, shared by the full and the windowed kind."""

from typing import Annotated

import torch
from annotated_types import Gt, Le
from pydantic import PositiveInt
from torch import Tensor, nn

from models.mixer import Mixer
from models.projections import project
from models.rope import rope
from models.settings import SettingError

Fraction = Annotated[float, Gt(0), Le(1)]


class AttentionHeads(Mixer):
    """The projections of multi-head attention, optionally with rotary positions and fewer key-value heads than heads.

    **Arguments:** `num_heads` H, which divides `d_model`; `num_kv_heads` G, which divides H and defaults to it
    (Ainslie et al. 2023, arXiv 2305.13245); `use_rope`: rotate queries and keys by their position, `rope_fraction` of
    each head's features, the first ones (Black et al. 2022, arXiv 2204.06745, section 2.1.1).
    """

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt,
        num_kv_heads: PositiveInt | None,
        use_rope: bool,
        rope_fraction: Fraction,
    ):
        super().__init__()
        if d_model % num_heads:
            raise SettingError("num_heads", num_heads, f"it must divide the model width d_model = {d_model}")
        if num_kv_heads is not None and num_heads % num_kv_heads:
            raise SettingError("num_kv_heads", num_kv_heads, f"it must divide num_heads = {num_heads}")
        if use_rope and (width := d_model // num_heads) % 2:
            raise SettingError("use_rope", use_rope, f"it needs an even head width, and d_model / num_heads = {width}")
        self.rotated = round(rope_fraction * (d_model // num_heads))
        if use_rope and (self.rotated % 2 or not self.rotated):
            expected = f"it must rotate an even number of a head's {d_model // num_heads} features"
            raise SettingError("rope_fraction", rope_fraction, expected)
        self.d_model, self.num_heads, self.num_kv_heads = d_model, num_heads, num_kv_heads or num_heads
        self.head_dim = d_model // num_heads
        self.use_rope = use_rope
        kv_width = self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, kv_width, bias=False)
        self.v_proj = nn.Linear(d_model, kv_width, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def project(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, N, K], keys and values [B, G, N, K]."""
        q, k, v = (
            t.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for t in project(x, self.q_proj, self.k_proj, self.v_proj)
        )
        return (self._rotate(q, position), self._rotate(k, position), v) if self.use_rope else (q, k, v)

    def _rotate(self, t: Tensor, position: Tensor) -> Tensor:
        if self.rotated == self.head_dim:
            return rope(t, position)
        return torch.cat([rope(t[..., : self.rotated], position), t[..., self.rotated :]], dim=-1)

    def repeat(self, t: Tensor) -> Tensor:
        """One key-value head for each query head: [B, G, N, K] -> [B, H, N, K]."""
        return t if self.num_kv_heads == self.num_heads else t.repeat_interleave(self.num_heads // self.num_kv_heads, 1)

    def join(self, y: Tensor) -> Tensor:
        """The heads side by side, projected: [B, H, N, K] -> [B, N, D]."""
        return self.o_proj(y.transpose(1, 2).flatten(-2))
