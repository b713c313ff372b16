"""Decaying linear attention in chunks against one step after the other."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.decay_attention import decay_linear_attention, decay_linear_attention_step


def inputs(batch, groups, repeats, length, width, strongest=1.0, dtype=torch.float64):
    torch.manual_seed(0)
    q, k = torch.randn(2, batch, groups, length, width, dtype=dtype).unbind()
    v = torch.randn(batch, groups * repeats, length, width + 1, dtype=dtype)
    log_decay = -strongest * torch.rand(v.shape[:3], dtype=dtype) ** 4
    state = torch.randn(batch, groups * repeats, width, width + 1, dtype=dtype)
    return [t.requires_grad_() for t in (q, k, v, log_decay, state)]


def one_by_one(q, k, v, log_decay, state):
    outputs = []
    for t in range(v.shape[2]):
        y, state = decay_linear_attention_step(q[:, :, t], k[:, :, t], v[:, :, t], log_decay[:, :, t], state)
        outputs.append(y)
    return torch.stack(outputs, 2) if outputs else v, state


@settings(max_examples=25)
@given(
    batch=st.integers(1, 2),
    groups=st.integers(1, 2),
    repeats=st.integers(1, 3),
    length=st.integers(0, 70),
    chunk=st.sampled_from([2, 3, 8, 64]),
    strongest=st.sampled_from([0.0, 1.0, 1e4]),
    from_nothing=st.booleans(),
)
def test_chunks_are_steps(batch, groups, repeats, length, chunk, strongest, from_nothing):
    q, k, v, log_decay, state = inputs(batch, groups, repeats, length, 3, strongest)
    y, final = decay_linear_attention(q, k, v, log_decay, None if from_nothing else state, chunk)
    expected = one_by_one(q, k, v, log_decay, torch.zeros_like(state) if from_nothing else state)
    torch.testing.assert_close((y, final()), expected, rtol=1e-11, atol=1e-11)


def test_gradients_are_those_of_the_steps():
    args = inputs(2, 2, 2, 50, 3)

    def gradients(form):
        y, state = form(*args)
        state = state() if callable(state) else state
        return torch.autograd.grad(y.square().sum() + state.square().sum(), args)

    chunked = gradients(lambda *args: decay_linear_attention(*args, chunk=8))
    torch.testing.assert_close(chunked, gradients(one_by_one), rtol=1e-9, atol=1e-9)


def test_a_strong_decay_leaves_the_digits_of_the_weak_ones():
    """A reset by exp(-20000) in mid-chunk: differences of a running sum would leave float32 decays 3 digits."""
    q, k, v, log_decay, state = inputs(1, 1, 1, 60, 4)
    with torch.no_grad():
        log_decay[:, :, 20] = -20000
    expected, _ = one_by_one(q, k, v, log_decay, state)
    y, _ = decay_linear_attention(*(t.float() for t in (q, k, v, log_decay, state)))
    assert (y - expected).norm() / expected.norm() < 1e-6


def test_compiles_into_one_graph():
    args = inputs(2, 2, 2, 50, 3)
    compiled = torch.compile(
        lambda *args: decay_linear_attention(*args, chunk=8)[0], fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(*args), decay_linear_attention(*args)[0])
