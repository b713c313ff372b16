"""H3: a shift state space model that lets neighbours meet and a diagonal one that remembers, between projections.

    out = W_o (q * ssm_diag(ssm_shift(k) v^T))

Source: Fu et al. 2022, arXiv 2212.14052, section 3.1 and Algorithm 1; the diagonal model is S4D (Gu et al. 2022,
arXiv 2206.11893) with the bilinear discretisation. Parameter names as in its reference.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from kernels.diagonal_ssm import diagonal_ssm, diagonal_ssm_step
from kernels.short_conv import short_conv, short_conv_step
from models.mixer import Mixer, accumulation_dtype
from models.settings import SettingError
from models.time_step import log_time_step


class ShiftSSM(nn.Module):
    """State s_t = shift(s_{t-1}) + B u_t, output C . s_t: in sum a convolution over the last S inputs."""

    def __init__(self, channels: int, d_state: int):
        super().__init__()
        self.B = nn.Parameter(torch.eye(1, d_state).repeat(channels, 1))  # [D, S], the first basis vector
        self.C = nn.Parameter(torch.empty(1, channels, d_state).uniform_(-1, 1) / math.sqrt(d_state))

    def forward(self) -> Tensor:
        """The response to an impulse [D, S]: at lag t the sum over j of B_j C_{j + t}."""
        S = self.B.shape[-1]
        shifted = F.pad(self.C.squeeze(0), (0, S - 1)).unfold(-1, S, 1)  # [D, S, S]
        return (shifted @ self.B.unsqueeze(-1)).squeeze(-1)


class DiagonalSSM(nn.Module):
    """Parameters of S / 2 complex states a channel in continuous time, and their step size."""

    def __init__(self, channels: int, d_state: int):
        super().__init__()
        half = d_state // 2
        self.log_dt = nn.Parameter(log_time_step(channels))  # [H]
        self.inv_A_real = nn.Parameter(torch.full((channels, half), math.log(0.5)))  # log(-Re A) [H, S/2]
        self.A_imag = nn.Parameter(math.pi * torch.arange(float(half)).repeat(channels, 1))  # [H, S/2]
        self.B = nn.Parameter(torch.tensor([1.0, 0.0]).repeat(channels, half, 1))  # [H, S/2, 2]
        self.C = nn.Parameter(torch.randn(1, channels, half, 2) / math.sqrt(2))  # [1, H, S/2, 2]

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """log a, b and c of the recurrence, by the bilinear rule: complex [H, S/2]."""
        wide = accumulation_dtype(self.log_dt.dtype)
        dt = self.log_dt.to(wide).exp().unsqueeze(-1)
        half_step = torch.complex(-self.inv_A_real.to(wide).exp(), self.A_imag.to(wide)) * dt / 2
        log_a = 2 * half_step.atanh()  # log of (1 + z) / (1 - z), without its cancellation at small z
        return log_a, dt * from_pairs(self.B) / (1 - half_step), from_pairs(self.C.squeeze(0))


def from_pairs(t: Tensor) -> Tensor:
    """Real pairs [..., 2] -> complex [...]."""
    return torch.complex(*t.to(accumulation_dtype(t.dtype)).unbind(-1))


class H3State(NamedTuple):
    """The last S - 1 keys, and the diagonal state of every product of key and value as real pairs."""

    shift: Tensor  # [B, S - 1, D]
    diagonal: Tensor  # [B, H, P, P, S/2, 2]


class H3(Mixer):
    """The H3 layer, of H heads whose P x P products of key and value share one diagonal state space model.

    **Arguments:** `d_state` S of both state space models, even, by default D / 4 rounded up to an even number;
    `head_dim` P, which divides D.
    """

    # torch 2.11 cannot split the loops around products of pairs of channels; for complex numbers there is no code.
    written = ("_associate", "_associate_step")

    def __init__(self, d_model: PositiveInt, d_state: PositiveInt | None = None, head_dim: PositiveInt = 2):
        super().__init__()
        d_state = d_state or 2 * math.ceil(d_model / 8)
        if d_state % 2:
            raise SettingError("d_state", d_state, "it must be even, since complex states come in conjugate pairs")
        if d_model % head_dim:
            raise SettingError("head_dim", head_dim, f"it must divide the model width d_model = {d_model}")
        self.d_model, self.d_state, self.head_dim = d_model, d_state, head_dim
        self.num_heads = d_model // head_dim
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        # The reference nests each state space model once more; a dictionary gives its parameters the same names.
        self.ssm_k_kernel = nn.ModuleDict({"kernel": ShiftSSM(d_model, d_state)})
        self.ssm_k_D = nn.Parameter(torch.randn(d_model))
        self.kernel = nn.ModuleDict({"kernel": DiagonalSSM(self.num_heads, d_state)})
        self.D = nn.Parameter(torch.randn(self.num_heads))
        self.output_linear = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        k, _ = short_conv(self.k_proj(x), self._shift_weight(), None, None)
        y, _ = self._associate(k, self.v_proj(x))
        return self._read(y, x)

    def init_state(self, batch_size, *, max_length=None, dtype=None, device=None) -> H3State:
        like = self.like_parameters(dtype, device)
        diagonal = (batch_size, self.num_heads, self.head_dim, self.head_dim, self.d_state // 2, 2)
        return H3State(torch.zeros(batch_size, self.d_state - 1, self.d_model, **like), torch.zeros(diagonal, **like))

    def prefill(self, x: Tensor, state: H3State) -> tuple[Tensor, H3State]:
        k, shift = short_conv(self.k_proj(x), self._shift_weight(), None, state.shift)
        y, final_state = self._associate(k, self.v_proj(x), from_pairs(state.diagonal))
        return self._read(y, x), H3State(shift, torch.view_as_real(final_state()).to(state.diagonal.dtype, copy=True))

    def step(self, x: Tensor, state: H3State) -> tuple[Tensor, H3State]:
        k, shift = short_conv_step(self.k_proj(x), self._shift_weight(), None, state.shift)
        y, diagonal = self._associate_step(k, self.v_proj(x), state.diagonal)
        return self._read(y, x), H3State(shift, diagonal)

    def state_bytes(self, length: int, dtype: torch.dtype) -> int:
        return ((self.d_state - 1) + self.head_dim * self.d_state) * self.d_model * dtype.itemsize

    def _shift_weight(self) -> Tensor:
        """The shift model with its skip as a convolution over keys [D, 1, S], the oldest first."""
        response = self.ssm_k_kernel["kernel"]() + F.pad(self.ssm_k_D.unsqueeze(-1), (0, self.d_state - 1))
        return response.flip(-1).unsqueeze(1)

    def _diagonal(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log a, b, c and the skip d of the diagonal model."""
        log_a, b, c = self.kernel["kernel"]()
        return log_a, b, c, self.D

    def _associate(self, k: Tensor, v: Tensor, s: Tensor | None = None) -> tuple[Tensor, Callable[[], Tensor]]:
        """Keys and values [B, N, D] -> their products through the diagonal model, [B, N, H, P, P], and its state."""
        return diagonal_ssm(self._product(k, v), *self._diagonal(), s)

    def _associate_step(self, k: Tensor, v: Tensor, diagonal: Tensor) -> tuple[Tensor, Tensor]:
        """One key and value [B, D] into the state: outputs [B, H, P, P] and the new state."""
        y, s = diagonal_ssm_step(self._product(k, v), *self._diagonal(), from_pairs(diagonal))
        return y, torch.view_as_real(s).to(diagonal.dtype, copy=True)

    def _product(self, k: Tensor, v: Tensor) -> Tensor:
        """All products of key and value within a head: [..., D] -> [..., H, P, P]."""
        k, v = (t.unflatten(-1, (-1, self.head_dim)) for t in (k, v))
        return k.unsqueeze(-1) * v.unsqueeze(-2)

    def _read(self, y: Tensor, x: Tensor) -> Tensor:
        """Sum over keys by the query, [..., H, P, P] -> [..., D]; the reference's channels go head by head within P."""
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))
        # Not as a matrix product: one as small as P x P for each position and head is slower than its sum.
        y = (q.unsqueeze(-1) * y).sum(-2)  # [..., H, P]
        return self.output_linear(y.transpose(-1, -2).flatten(-2))
