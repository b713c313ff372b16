"""H3: a shift state space model that lets neighbours meet and a diagonal one that remembers, between projections.

    out = W_o (q * ssm_diag(ssm_shift(k) v^T))

Source: Fu et al. 2022, arXiv 2212.14052, section 3.1 and Algorithm 1; the diagonal model is S4D (Gu et al. 2022,
arXiv 2206.11893) with the bilinear discretisation. Parameter names as in its reference.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from kernels.diagonal_ssm import Complex, diagonal_ssm, diagonal_ssm_step, times
from kernels.long_conv import convolve, toeplitz
from kernels.short_conv import short_conv_step
from kernels.storage import stored
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
        C = self.C.squeeze(0)
        return (self.B.unsqueeze(-1) * toeplitz(C.flip(-1), C.shape[-1])).sum(1).flip(-1)


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

    def forward(self) -> tuple[Complex, Complex, Complex]:
        """log a, b and c of the recurrence, by the bilinear rule: [H, S/2].

        With z = dt A / 2 = x + i y they are a = (1 + z) / (1 - z), b = dt B / (1 - z) and c = 2 C, of which a real part
        is that of a state and its conjugate.
        """
        wide = accumulation_dtype(self.log_dt.dtype)
        dt, B, C = self.log_dt.to(wide).exp().unsqueeze(-1), self.B.to(wide), self.C.squeeze(0).to(wide)
        x, y = -self.inv_A_real.to(wide).exp() * dt / 2, self.A_imag.to(wide) * dt / 2
        below = (1 - x) ** 2 + y**2  # |1 - z|^2
        # log |a|^2 without cancellation: near 1 from 1 + 4 x / |1 - z|^2, and below a half from twice itself.
        near_1, twice = 4 * x / below, 2 * ((1 + x) ** 2 + y**2) / below
        log_square = near_1.clamp(min=-0.5).log1p() + twice.clamp(max=1).log()
        log_a = Complex(log_square / 2, torch.atan2(2 * y, 1 - x**2 - y**2))  # arg a = arg (1 + z)(1 - z*)
        b = times(Complex(*B.unbind(-1)), Complex(dt * (1 - x) / below, dt * y / below))
        return log_a, b, Complex(*(2 * C).unbind(-1))


class H3State(NamedTuple):
    """The last S - 1 keys, and the diagonal state of every product of key and value as real pairs."""

    shift: Tensor  # [B, S - 1, D]
    diagonal: Tensor  # [B, H, P, P, S/2, 2]


class H3(Mixer):
    """The H3 layer, of H heads whose P x P products of key and value share one diagonal state space model.

    **Arguments:** `d_state` S of both state space models, even, by default D / 4 rounded up to an even number;
    `head_dim` P, which divides D.
    """

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
        q, k, v = self._project(x)
        y, _ = diagonal_ssm(self._product(convolve(k, self._shift_response()), v), *self._diagonal())
        return self._read(q, y)

    def init_state(self, batch_size, *, max_length=None, dtype=None, device=None) -> H3State:
        like = self.like_parameters(dtype, device)
        diagonal = (batch_size, self.num_heads, self.head_dim, self.head_dim, self.d_state // 2, 2)
        return H3State(torch.zeros(batch_size, self.d_state - 1, self.d_model, **like), torch.zeros(diagonal, **like))

    def prefill(self, x: Tensor, state: H3State) -> tuple[Tensor, H3State]:
        q, k, v = self._project(x)
        keys = torch.cat([state.shift.permute(2, 0, 1).to(k.dtype), k], dim=-1)  # [D, B, S - 1 + N]
        k = convolve(keys, self._shift_response())[..., self.d_state - 1 :]
        y, final_state = diagonal_ssm(self._product(k, v), *self._diagonal(), state.diagonal)
        shift = keys[..., x.shape[1] :].permute(1, 2, 0).contiguous()
        return self._read(q, y), H3State(stored(shift, state.shift.dtype), stored(final_state(), state.diagonal.dtype))

    def step(self, x: Tensor, state: H3State) -> tuple[Tensor, H3State]:
        weight = self._shift_response().flip(-1).unsqueeze(1)  # of the oldest key first
        k, shift = short_conv_step(self.k_proj(x), weight, None, state.shift)
        u = self._product(k.T, self.v_proj(x).T).movedim(-1, 0)
        y, diagonal = diagonal_ssm_step(u, *self._diagonal(), state.diagonal)
        return self._read(self.q_proj(x).T, y.movedim(0, -1)), H3State(shift, stored(diagonal, state.diagonal.dtype))

    def state_bytes(self, length: int, dtype: torch.dtype) -> int:
        return ((self.d_state - 1) + self.head_dim * self.d_state) * self.d_model * dtype.itemsize

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, each with a channel's sequences side by side in memory: [B, N, D] -> [D, B, N]."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        weight, bias = (torch.cat([getattr(p, name) for p in projections]) for name in ("weight", "bias"))
        y = (weight @ x.flatten(0, 1).T).view(3, self.d_model, *x.shape[:2])
        return (y + bias.view(3, -1, 1, 1).to(y.dtype)).unbind()

    def _shift_response(self) -> Tensor:
        """The shift model with its skip as a filter [D, S]."""
        return self.ssm_k_kernel["kernel"]() + F.pad(self.ssm_k_D.unsqueeze(-1), (0, self.d_state - 1))

    def _diagonal(self) -> tuple[Complex, Complex, Complex, Tensor]:
        """log a, b, c and the skip d of the diagonal model."""
        log_a, b, c = self.kernel["kernel"]()
        return log_a, b, c, self.D

    def _product(self, k: Tensor, v: Tensor) -> Tensor:
        """All products of key and value within a head: [D, ...] -> [H, P, P, ...]."""
        return self._heads(k).unsqueeze(2) * self._heads(v).unsqueeze(1)

    def _read(self, q: Tensor, y: Tensor) -> Tensor:
        """Sum over keys by the query: q [D, ...], y [H, P, P, ...] -> [..., D]."""
        # Not as a matrix product: one as small as P x P for each position and head is slower than its sum, which has
        # its dtype named because autocast would widen it.
        y = (self._heads(q).unsqueeze(2) * y).sum(1, dtype=y.dtype)  # [H, P, ...]
        y = y.transpose(0, 1).flatten(0, 1)  # the reference's channels go head by head within P
        return self.output_linear(y.movedim(0, -1))

    def _heads(self, t: Tensor) -> Tensor:
        """[D, ...] -> [H, P, ...]."""
        return t.unflatten(0, (self.num_heads, self.head_dim))
