"""The diagonal state space model in chunks of any length against its recurrence, in float64."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.diagonal_ssm import Complex, diagonal_ssm, diagonal_ssm_step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@settings(max_examples=30, derandomize=True)
@given(N=st.integers(1, 30), chunk=st.integers(1, 12), starts=st.booleans(), between=st.sampled_from([(), (2, 3)]))
def test_chunks_are_steps(N, chunk, starts, between):
    draw = torch.Generator().manual_seed(N + 100 * chunk)
    H, half, B = 3, 4, 2

    def random(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(DEVICE)

    log_a = Complex(-0.3 * random(H, half).abs() - 0.01, random(H, half))
    parameters = log_a, Complex(*random(2, H, half)), Complex(*random(2, H, half)), random(H)
    u, state = random(H, *between, B, N), random(B, H, *between, half, 2)
    if not starts:
        state = torch.zeros_like(state)
    y, final_state = diagonal_ssm(u, *parameters, state if starts else None, chunk=chunk)
    for t in range(N):
        expected, state = diagonal_ssm_step(u[..., t].movedim(-1, 0), *parameters, state)
        torch.testing.assert_close(y[..., t].movedim(-1, 0), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(final_state(), state, rtol=1e-9, atol=1e-9)
