"""Triton kernels for the selective scan of Mamba, forward and backward; `kernels/selective_scan.py` says what it is.

A program owns one sequence and a block of channels with all their S states, which stay in registers from the first
step to the last: decays and inputs [S, channels] are never in memory, as in the scan of Gu and Dao 2023, arXiv
2312.00752, section 3.3.2. The forward pass saves the states that enter every tile of T steps. The backward pass takes
the tiles from the last to the first, computes the T states of a tile again from the saved one, and then runs the
adjoint recurrence

    dh_t = C_t dy_t + a_{t+1} dh_{t+1},   a_t = exp(dt_t A),   p_t = dh_t a_t h_{t-1}
    dx_t = dt_t (B_t . dh_t)              dB_t = sum over channels of dt_t x_t dh_t     dA = sum over t of dt_t p_t
    ddt_t = x_t (B_t . dh_t) + A . p_t    dC_t = sum over channels of dy_t h_t          dstate = a_1 dh_1

Few sequences leave most of a GPU idle in that way. So where no gradient will be asked for, long ones are cut into
segments with a program each: one kernel finds what a segment adds to a state and the sum of its dt, which with A is its
decay, and a second takes the steps again from the state that enters the segment, found from the segments before it.

Sums over the channels of a block are made in registers, those over blocks, and over the batch for A, by a sum after the
kernel, so that results do not vary from run to run.

With b sequences, M = b N E and e bytes an element of x, the forward pass moves M (2 e + 4 + s S / T) bytes, where a
saved state takes s = 2 beside inputs in bfloat16 and else 4, and does an exponential and 4 operations for each of M S
states. The backward pass moves M (3 e + 8 + s S / T) bytes and 4 e b N S (E / block) for the sums over blocks, and does
two exponentials, 16 operations and 3 exchanges between threads for each state. A multiprocessor that does 16
exponentials, 32 exchanges and 128 operations a clock is bound by instructions in both.
"""

# The language inside @triton.jit is not Python's: sizes are constants there, and a static_range is unrolled.
# pyright: reportGeneralTypeIssues=false

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = 1.4426950408889634
LN2 = tl.constexpr(0.6931471805599453)


class Blocks(NamedTuple):
    """How the work is cut; counts of channels are powers of two.

    States come in pieces of L for all channels of a program, which are tensors of their own: so their number need not
    be a power of two, and which thread holds what does not hang on the compiler's choice among equals.
    """

    forward_channels: int
    backward_channels: int
    tile: int
    """T: the backward pass holds T + 1 states of its channels in registers; forward, T inputs are under way at once."""
    registers: int | None
    """What a thread of the backward pass is held to, so that a scheduler has three warps to choose from."""

    def forward(self, E: int, S: int, **others: bool) -> dict[str, Any]:
        """What `_segments` and, with KEEP, `_forward` are compiled for."""
        L = min(8, _padded(S))
        return {"E": E, "S": S, "L": L, "BE": self.forward_channels, "T": self.tile, "num_warps": 1, **others}

    def backward(self, E: int, S: int) -> dict[str, Any]:
        """What `_backward` is compiled for."""
        BE = self.backward_channels
        return {
            "E": E, "S": S, "L": 128 // BE, "BE": BE, "T": self.tile, "num_warps": 1, "maxnreg": self.registers,
        }  # fmt: skip


def blocks(S: int) -> Blocks:
    """The cut for S states a channel: the one place that chooses it. A program is a warp, which spares it barriers.

    Forward, a thread has two channels to itself, as long as S is at most 32. Backward, it has up to 16 states as long
    as S is at most 64: tiles of 4 and 168 registers, some of 16 states outside them, are quicker than two warps with
    all registers.
    """
    padded = _padded(S)
    tile = min(4, 512 // padded)
    registers = 168 if padded <= 64 else None
    return Blocks(min(64, 2048 // padded), min(128, max(8, 512 // padded)), tile, registers)


PROGRAMS = 2112
"""Of a GPU filled: four warps for each of the four schedulers of 132 multiprocessors."""
SHORTEST = 64
"""Steps of a segment; the state that enters it costs up to a step for each segment before it."""


def segments(programs: int, N: int) -> int:
    """Into how many a sequence of N steps is cut, where whole sequences make so many programs.

    Every step is taken twice then, so that fewer than four would gain nothing.
    """
    count = min(PROGRAMS // programs, N // SHORTEST)
    return count if count >= 4 else 1


def _padded(S: int) -> int:
    """The power of two that holds S states, at least 4."""
    return max(4, 1 << (S - 1).bit_length())


@triton.jit
def _segments(
    x_ptr, dt_ptr, rate_ptr, b_ptr, added_ptr, sum_ptr,
    N, length, sequences, b_row, b_step,
    E: tl.constexpr, S: tl.constexpr, L: tl.constexpr, BE: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """What a segment of `length` steps adds to a state, [., segments, S, E], and its sum of dt, [., segments, E]."""
    pieces: tl.constexpr = (S + L - 1) // L
    blocks: tl.constexpr = (E + BE - 1) // BE
    row, segment = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(1)
    e = (tl.program_id(0) % blocks).to(tl.int64) * BE + tl.arange(0, BE)
    s = tl.arange(0, L)
    in_e = e < E
    at = tl.max_contiguous(s[:, None] * E + e[None, :], [1, 2])
    rate_ptr += row // sequences * S * E + at
    part = row * tl.num_programs(1) + segment
    added_ptr += part * S * E + at
    sum_ptr += part * E + e
    own = row * N * E + e
    x_ptr, dt_ptr, b_ptr = x_ptr + own, dt_ptr + own, b_ptr + row * b_row + s
    rates, hs = (), ()
    for p in tl.static_range(pieces):
        inside = (p * L + s < S)[:, None] & in_e[None, :]
        rates += (tl.load(rate_ptr + p * L * E, mask=inside, other=0.0),)
        hs += (tl.zeros([L, BE], tl.float32),)
    total = tl.zeros([BE], tl.float32)
    for first in range(segment * length, (segment + 1) * length, T):
        for i in tl.static_range(T):
            x, dt, bs = _inputs(x_ptr, dt_ptr, b_ptr, first + i, N, s, in_e, E, S, L, b_step)
            hs = _after(hs, rates, x[None, :], dt[None, :], bs)
            total += dt
    for p in tl.static_range(pieces):
        tl.store(added_ptr + p * L * E, hs[p], mask=(p * L + s < S)[:, None] & in_e[None, :])
    tl.store(sum_ptr, total, mask=in_e)


@triton.jit
def _forward(
    x_ptr, dt_ptr, rate_ptr, b_ptr, c_ptr, state_ptr, added_ptr, sum_ptr, y_ptr, final_ptr, starts_ptr,
    N, length, sequences, b_row, b_step, c_row, c_step,
    E: tl.constexpr, S: tl.constexpr, L: tl.constexpr, BE: tl.constexpr, T: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """The steps of a segment in BE channels: states h in pieces [L, BE]. With KEEP a sequence is one segment."""
    pieces: tl.constexpr = (S + L - 1) // L
    blocks: tl.constexpr = (E + BE - 1) // BE
    row = (tl.program_id(0) // blocks).to(tl.int64)
    # In 64 bits, since otherwise each row of `at` takes registers for an address of its own.
    e = (tl.program_id(0) % blocks).to(tl.int64) * BE + tl.arange(0, BE)
    s = tl.arange(0, L)
    in_e = e < E
    # With more of its contiguity to be seen, the compiler gives a thread more channels, and a part of their states.
    at = tl.max_contiguous(s[:, None] * E + e[None, :], [1, 2])
    rate_ptr += row // sequences * S * E + at
    state_ptr += row * S * E + at
    final_ptr += row * S * E + at
    starts_ptr += row * tl.cdiv(N, T) * S * E + at
    own = row * N * E + e
    x_ptr, dt_ptr, y_ptr, b_ptr, c_ptr = (
        x_ptr + own,
        dt_ptr + own,
        y_ptr + own,
        b_ptr + row * b_row + s,
        c_ptr + row * c_row + s,
    )
    rates, hs = (), ()
    for p in tl.static_range(pieces):
        inside = (p * L + s < S)[:, None] & in_e[None, :]
        rates += (tl.load(rate_ptr + p * L * E, mask=inside, other=0.0),)
        hs += (tl.load(state_ptr + p * L * E, mask=inside, other=0.0),)
    begin, end = 0, N
    if not KEEP:
        segment, others = tl.program_id(1), tl.num_programs(1) - 1
        begin, end = segment * length, tl.minimum((segment + 1) * length, N)
        added_ptr += row * others * S * E + at
        sum_ptr += row * others * E + e
        hs = _entering(hs, rates, added_ptr, sum_ptr, segment, s, in_e, E, S, L)
    for first in range(begin, end, T):
        if KEEP:
            for p in tl.static_range(pieces):
                inside = (p * L + s < S)[:, None] & in_e[None, :]
                tl.store(starts_ptr + (first // T * S + p * L) * E, hs[p].to(starts_ptr.dtype.element_ty), mask=inside)
        ys = ()
        for i in tl.static_range(T):
            n = first + i
            # dt = 0 past the end, where steps then leave the state as it is.
            x = tl.load(x_ptr + n * E, mask=in_e & (n < N), other=0.0).to(tl.float32)
            dt = tl.load(dt_ptr + n * E, mask=in_e & (n < N), other=0.0).to(tl.float32)
            u = dt * x
            y = tl.zeros([BE], tl.float32)
            after = ()
            for p in tl.static_range(pieces):
                in_s = (p * L + s < S) & (n < N)
                b = tl.load(b_ptr + n * b_step + p * L, mask=in_s, other=0.0).to(tl.float32)
                c = tl.load(c_ptr + n * c_step + p * L, mask=in_s, other=0.0).to(tl.float32)
                h = tl.exp2(dt[None, :] * rates[p]) * hs[p] + u[None, :] * b[:, None]
                y += tl.sum(h * c[:, None], 0)
                after += (h,)
            hs = after
            ys += (y,)
        # Stores come last, as no load may overtake a store.
        for i in tl.static_range(T):
            n = first + i
            tl.store(y_ptr + n * E, ys[i].to(y_ptr.dtype.element_ty), mask=in_e & (n < N))
    if end == N:
        for p in tl.static_range(pieces):
            inside = (p * L + s < S)[:, None] & in_e[None, :]
            tl.store(final_ptr + p * L * E, hs[p], mask=inside)


@triton.jit
def _backward(
    x_ptr, dt_ptr, rate_ptr, b_ptr, c_ptr, starts_ptr, dy_ptr, dfinal_ptr,
    dx_ptr, ddt_ptr, da_ptr, db_ptr, dc_ptr, dstate_ptr,
    N, sequences, b_row, b_step, c_row, c_step,
    E: tl.constexpr, S: tl.constexpr, L: tl.constexpr, BE: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """The adjoint of `_forward`; dA [., S, E] is of one sequence, dB and dC [blocks, ., N, S] of one block.

    States are pieces [L, BE]: a warp is L x BE / 4 threads, each with a state of 4 channels. What belongs to a channel
    is [L, BE] too, so that each of its L threads reads it for itself: read once, it would have to be handed around.
    """
    pieces: tl.constexpr = (S + L - 1) // L
    blocks: tl.constexpr = (E + BE - 1) // BE
    row, block = (tl.program_id(0) // blocks).to(tl.int64), (tl.program_id(0) % blocks).to(tl.int64)
    s, lane = tl.arange(0, L), tl.arange(0, L)[:, None]
    e = block * BE + tl.arange(0, BE)[None, :] + 0 * lane  # [L, BE]
    in_e = e < E
    at = lane * E + e
    tiles = tl.cdiv(N, T)
    rate_ptr += row // sequences * S * E + at
    dfinal_ptr += row * S * E + at
    starts_ptr += row * tiles * S * E + at
    dstate_ptr += row * S * E + at
    da_ptr += row * S * E + at
    own = row * N * E + e
    x_ptr, dt_ptr, dy_ptr, dx_ptr, ddt_ptr = x_ptr + own, dt_ptr + own, dy_ptr + own, dx_ptr + own, ddt_ptr + own
    part = (block * (tl.num_programs(0) // blocks) + row) * N * S + s
    b_ptr, c_ptr = b_ptr + row * b_row + s, c_ptr + row * c_row + s
    db_ptr, dc_ptr = db_ptr + part, dc_ptr + part
    rates, dhs, das = (), (), ()
    for p in tl.static_range(pieces):
        inside = (p * L + lane < S) & in_e
        rates += (tl.load(rate_ptr + p * L * E, mask=inside, other=0.0),)
        dhs += (tl.load(dfinal_ptr + p * L * E, mask=inside, other=0.0),)
        das += (tl.zeros([L, BE], tl.float32),)
    for done in range(tiles):
        first = (tiles - 1 - done) * T
        hs = ((),)  # before step `first`, and after each
        for p in tl.static_range(pieces):
            inside = (p * L + lane < S) & in_e
            start = tl.load(starts_ptr + ((tiles - 1 - done) * S + p * L) * E, mask=inside, other=0.0)
            hs = (hs[0] + (start.to(tl.float32),),)
        for i in tl.static_range(T):
            x, dt, bs = _inputs(x_ptr, dt_ptr, b_ptr, first + i, N, s, in_e, E, S, L, b_step)
            hs += (_after(hs[i], rates, x, dt, bs),)
        next_x, next_dt, next_bs = _inputs(x_ptr, dt_ptr, b_ptr, first + T - 1, N, s, in_e, E, S, L, b_step)
        next_dy, next_cs = _outer(dy_ptr, c_ptr, first + T - 1, N, s, in_e, E, S, L, c_step)
        for i in tl.static_range(T - 1, -1, -1):
            n = first + i
            x, dt, bs, dy, cs = next_x, next_dt, next_bs, next_dy, next_cs
            # No load may overtake a store, so those of the next step come before the stores of this one.
            if i > 0:
                next_x, next_dt, next_bs = _inputs(x_ptr, dt_ptr, b_ptr, n - 1, N, s, in_e, E, S, L, b_step)
                next_dy, next_cs = _outer(dy_ptr, c_ptr, n - 1, N, s, in_e, E, S, L, c_step)
            dhs, das, dcs, dbs, du, ddt = _adjoint(dhs, das, hs[i], hs[i + 1], rates, x, dt, dy, bs, cs)
            for p in tl.static_range(pieces):
                in_s = (p * L + s < S) & (n < N)
                tl.store(dc_ptr + n * S + p * L, dcs[p].to(dc_ptr.dtype.element_ty), mask=in_s)
                tl.store(db_ptr + n * S + p * L, dbs[p].to(db_ptr.dtype.element_ty), mask=in_s)
            mine = in_e & (lane == 0) & (n < N)
            tl.store(dx_ptr + n * E, (du * dt).to(dx_ptr.dtype.element_ty), mask=mine)
            tl.store(ddt_ptr + n * E, ddt.to(ddt_ptr.dtype.element_ty), mask=mine)
    for p in tl.static_range(pieces):
        inside = (p * L + lane < S) & in_e
        tl.store(dstate_ptr + p * L * E, dhs[p], mask=inside)
        tl.store(da_ptr + p * L * E, das[p], mask=inside)


@triton.jit
def _after(hs, rates, x, dt, bs):
    """The states of every piece after one more step."""
    after = ()
    for p in tl.static_range(len(hs)):
        after += (tl.exp2(dt * rates[p]) * hs[p] + dt * x * bs[p][:, None],)
    return after


@triton.jit
def _entering(
    hs, rates, added_ptr, sum_ptr, segment, s, in_e, E: tl.constexpr, S: tl.constexpr, L: tl.constexpr
):  # fmt: skip
    """The states that enter a segment, from those that enter the first and what the segments in between do."""
    for before in range(segment):
        total = tl.load(sum_ptr + before * E, mask=in_e, other=0.0)
        after = ()
        for p in tl.static_range(len(hs)):
            inside = (p * L + s < S)[:, None] & in_e[None, :]
            added = tl.load(added_ptr + (before * S + p * L) * E, mask=inside, other=0.0)
            after += (tl.exp2(total[None, :] * rates[p]) * hs[p] + added,)
        hs = after
    return hs


@triton.jit
def _adjoint(dhs, das, before, after, rates, x, dt, dy, bs, cs):
    """A step back: dh and dA of every piece, dC and dB of states, and the gradients of dt x and dt of channels."""
    new_dhs, new_das, dcs, dbs = (), (), (), ()
    du, along = tl.zeros_like(rates[0]), tl.zeros_like(rates[0])
    for p in tl.static_range(len(dhs)):
        dh = dhs[p] + cs[p][:, None] * dy
        dcs += (tl.sum(after[p] * dy, 1),)
        dbs += (tl.sum(dh * (dt * x), 1),)
        du += dh * bs[p][:, None]
        dh *= tl.exp2(dt * rates[p])
        change = dh * before[p]
        along += change * rates[p]
        new_dhs += (dh,)
        new_das += (das[p] + dt * change,)
    du = tl.sum(du, 0)[None, :]
    ddt = du * x + tl.sum(along, 0)[None, :] * LN2
    return new_dhs, new_das, dcs, dbs, du, ddt


@triton.jit
def _inputs(
    x_ptr, dt_ptr, b_ptr, n, N, s, in_e, E: tl.constexpr, S: tl.constexpr, L: tl.constexpr, b_step
):  # fmt: skip
    """x and dt of channels, B of states in pieces, at step n; dt = 0 past the end, so that nothing changes there."""
    x = tl.load(x_ptr + n * E, mask=in_e & (n < N), other=0.0).to(tl.float32)
    dt = tl.load(dt_ptr + n * E, mask=in_e & (n < N), other=0.0).to(tl.float32)
    return x, dt, _states(b_ptr + n * b_step, s, n < N, S, L)


@triton.jit
def _outer(
    dy_ptr, c_ptr, n, N, s, in_e, E: tl.constexpr, S: tl.constexpr, L: tl.constexpr, c_step
):  # fmt: skip
    """The gradient of y of channels, C of states in pieces, at step n."""
    dy = tl.load(dy_ptr + n * E, mask=in_e & (n < N), other=0.0).to(tl.float32)
    return dy, _states(c_ptr + n * c_step, s, n < N, S, L)


@triton.jit
def _states(ptr, s, inside, S: tl.constexpr, L: tl.constexpr):
    """A number for each state, in pieces [L]."""
    found = ()
    for p in tl.static_range((S + L - 1) // L):
        found += (tl.load(ptr + p * L, mask=(p * L + s < S) & inside, other=0.0).to(tl.float32),)
    return found


Outputs = tuple[Tensor, Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("recallbench::selective_scan_forward", mutates_args=())
def _scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, keep: bool) -> Outputs:
    """Outputs [b, N, E], the final state [b, E, S] and, to `keep` for the gradient, tiles' first states [b, ., S, E].

    A is [g, E, S], for the g groups of b / g sequences that follow each other in the other arguments.
    """
    groups, (b, N, E), S = len(A), x.shape, A.shape[-1]
    y, h, starts = _empty_outputs(x, A, keep)
    x, dt, rate, B, C = _arguments(x, dt, A, B, C)
    cut = blocks(S)
    programs = _ceil(E, cut.forward_channels) * b
    count = 1 if keep else segments(programs, N)
    length = _ceil(_ceil(N, count), cut.tile) * cut.tile
    before = _ceil(N, length) - 1
    added, total = (x.new_empty(b, before, *rest, E, dtype=torch.float32) for rest in ([S], []))
    with torch.cuda.device_of(x):
        if before:
            _segments[(programs, before)](
                x, dt, rate, B, added, total,
                N, length, b // groups, B.stride(0), B.stride(1), **cut.forward(E, S),
            )  # fmt: skip
        _forward[(programs, before + 1)](
            x, dt, rate, B, C, _transposed(state), added, total, y, h, starts,
            N, length, b // groups, B.stride(0), B.stride(1), C.stride(0), C.stride(1),
            **cut.forward(E, S, KEEP=keep),
        )  # fmt: skip
    return y, h.mT, starts


@_scan.register_fake
def _(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, keep: bool) -> Outputs:
    y, h, starts = _empty_outputs(x, A, keep)
    return y, h.mT, starts


@torch.library.custom_op("recallbench::selective_scan_backward", mutates_args=())
def _scan_gradients(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, starts: Tensor, dy: Tensor, dfinal: Tensor
) -> Gradients:
    """The gradients of x, dt, A, B, C and state by those of the outputs and of the final state."""
    kinds = [t.dtype for t in (A, B, C, state)]
    groups, (b, N, E), S = len(A), x.shape, A.shape[-1]
    x, dt, rate, B, C = _arguments(x, dt, A, B, C)
    cut = blocks(S)
    parts = _ceil(E, cut.backward_channels)
    dx, ddt = torch.empty_like(x), torch.empty_like(dt)
    dA, dstate = (x.new_empty(b, S, E, dtype=torch.float32) for _ in range(2))
    dB, dC = (t.new_empty(parts, b, N, S) for t in (B, C))
    with torch.cuda.device_of(x):
        _backward[(parts * b,)](
            x, dt, rate, B, C, starts, dy.contiguous(), _transposed(dfinal), dx, ddt, dA, dB, dC, dstate,
            N, b // groups, B.stride(0), B.stride(1), C.stride(0), C.stride(1), **cut.backward(E, S),
        )  # fmt: skip
    dA = dA.unflatten(0, (groups, -1)).sum(1).mT.contiguous()
    dA, dB, dC, dstate = (t.to(kind) for t, kind in zip((dA, dB.sum(0), dC.sum(0), dstate.mT), kinds, strict=True))
    return dx, ddt, dA, dB, dC, dstate


@_scan_gradients.register_fake
def _(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, starts: Tensor, dy: Tensor, dfinal: Tensor
) -> Gradients:
    dx, ddt, dA, dB, dC = (t.new_empty(t.shape) for t in (x, dt, A, B, C))
    return dx, ddt, dA, dB, dC, state.new_empty(state.mT.shape).mT


def _arguments(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, ...]:
    """As the kernels read them: x and dt contiguous, A to base 2 and [g, S, E], states of B and C side by side."""
    B, C = (t if t.stride(-1) == 1 else t.contiguous() for t in (B, C))
    return x.contiguous(), dt.contiguous(), _transposed(A).mul_(LOG2E), B, C


def _ceil(count: int, size: int) -> int:
    return -(-count // size)


def _transposed(state: Tensor) -> Tensor:
    """[., E, S] -> [., S, E] in float32, where neighbouring threads find neighbouring channels."""
    return torch.empty_like(state.mT, dtype=torch.float32, memory_format=torch.contiguous_format).copy_(state.mT)


def _empty_outputs(x: Tensor, A: Tensor, keep: bool) -> Outputs:
    (b, N, E), S = x.shape, A.shape[-1]
    tiles = _ceil(N, blocks(S).tile) if keep else 0
    return (
        x.new_empty(b, N, E),
        x.new_empty(b, S, E, dtype=torch.float32),
        x.new_empty(b, tiles, S, E, dtype=x.dtype if x.dtype == torch.bfloat16 else torch.float32),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    *tensors, _ = inputs
    starts = output[2]
    ctx.mark_non_differentiable(starts)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, starts)


def _gradients(ctx: Any, dy: Tensor | None, dfinal: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    x, dt, A, B, C, state, starts = ctx.saved_tensors
    dy = torch.zeros_like(x) if dy is None else dy
    dfinal = torch.zeros_like(state) if dfinal is None else dfinal
    return *_scan_gradients(x, dt, A, B, C, state, starts, dy, dfinal), None


_scan.register_autograd(_gradients, setup_context=_save)


@_scan.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Outputs, tuple[int, int, int]]:
    """Members are groups of sequences, each with its own A."""
    *tensors, keep = args
    merged = (
        (t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)
        for t, dim in zip(tensors, in_dims, strict=False)
    )
    y, final, starts = (t.unflatten(0, (info.batch_size, -1)) for t in _scan(*merged, keep))
    return (y, final, starts), (0, 0, 0)


def fused_selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`kernels.selective_scan.selective_scan` on a GPU: any strides, any dtypes but float64, sums in float32.

    No size may be 0. Under `torch.func.vmap` it is one call for all members.

    **Raises** `ValueError` where shapes or devices do not fit together.
    """
    check(x, dt, A, B, C, state)
    y, final, _ = _scan(x, dt, A.unsqueeze(0), B, C, state, torch.is_grad_enabled())
    return y, final


def check(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> None:
    """**Raises** `ValueError` where shapes or devices do not fit together."""
    if x.ndim != 3 or A.ndim != 2:
        raise ValueError(f"selective_scan takes x [., N, E] and A [E, S], not {list(x.shape)} and {list(A.shape)}")
    (b, N, E), S = x.shape, A.shape[1]
    shapes = {"dt": (b, N, E), "A": (E, S), "B": (b, N, S), "C": (b, N, S), "state": (b, E, S)}
    for (name, shape), t in zip(shapes.items(), (dt, A, B, C, state), strict=True):
        if t.shape != shape:
            raise ValueError(
                f"selective_scan got {name} {list(t.shape)}, and takes {list(shape)} with x {[b, N, E]} and {S} states"
            )
    for name, t in zip(("x", *shapes), (x, dt, A, B, C, state), strict=True):
        if t.device != x.device:
            raise ValueError(f"selective_scan got x on {x.device} and {name} on {t.device}, and takes one device")
