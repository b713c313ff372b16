"""H3 against its two state space models written out as dense matrices, one step at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import MIXERS
from models.settings import SettingError


def bilinear(A, B, dt):
    """Discretise s' = A s + B u for steps of dt, A dense (Gu et al. 2022, arXiv 2206.11893, equation 3)."""
    identity = torch.eye(len(A), dtype=A.dtype)
    below = identity - dt / 2 * A
    return torch.linalg.solve(below, identity + dt / 2 * A), torch.linalg.solve(below, dt * B)


def by_hand(mixer, x):
    N, D, S, P = x.shape[0], mixer.d_model, mixer.d_state, mixer.head_dim
    q, k, v = mixer.q_proj(x), mixer.k_proj(x), mixer.v_proj(x)

    shift = torch.diag(torch.ones(S - 1, dtype=x.dtype), -1)
    ssm, states, shifted = mixer.ssm_k_kernel["kernel"], torch.zeros(D, S, dtype=x.dtype), []
    for t in range(N):
        states = states @ shift.T + ssm.B * k[t, :, None]
        shifted.append((ssm.C[0] * states).sum(-1) + mixer.ssm_k_D * k[t])
    k = torch.stack(shifted)

    ssm, y = mixer.kernel["kernel"], torch.zeros(N, P, mixer.num_heads, dtype=x.dtype)
    for h in range(mixer.num_heads):
        half = torch.complex(-ssm.inv_A_real[h].exp(), ssm.A_imag[h])
        A = torch.diag(torch.cat([half, half.conj()]))
        B, C = (torch.view_as_complex(t.contiguous()) for t in (ssm.B[h], ssm.C[0, h]))
        a, b = bilinear(A, torch.cat([B, B.conj()]), ssm.log_dt[h].exp())
        c = torch.cat([C, C.conj()])
        for i in range(P):
            for j in range(P):
                s = torch.zeros(S, dtype=A.dtype)
                for t in range(N):
                    u = k[t, h * P + i] * v[t, h * P + j]
                    s = a @ s + b * u
                    out = c @ s
                    assert abs(out.imag) < 1e-9
                    y[t, j, h] += q[t, h * P + i] * (out.real + mixer.D[h] * u)
    return mixer.output_linear(y.flatten(1))


@settings(max_examples=5)
@given(
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 3),
    half=st.integers(1, 3),
    length=st.integers(1, 25),
    cut=st.integers(0, 25),
)
@torch.no_grad()
def test_both_forms_are_the_state_space_models(heads, head_dim, half, length, cut):
    torch.manual_seed(0)
    mixer = MIXERS["h3"](heads * head_dim, d_state=2 * half, head_dim=head_dim).double()
    for parameter in mixer.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(1, length, heads * head_dim, dtype=torch.float64)
    expected = by_hand(mixer, x[0])
    torch.testing.assert_close(mixer(x)[0], expected, rtol=1e-10, atol=1e-10)
    y, state = mixer.prefill(x[:, :cut], mixer.init_state(1))
    outputs = [*y[0]]
    for t in range(cut, length):
        y, state = mixer.step(x[:, t], state)
        outputs.append(y[0])
    torch.testing.assert_close(torch.stack(outputs), expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_decays_near_one_and_near_zero_are_exact_in_float32():
    ssm = MIXERS["h3"](12, d_state=4).kernel["kernel"]
    ssm.log_dt.copy_(torch.tensor([1e-6, 1e-3, 1.0, 4 - 1e-3, 4 + 1e-4, 100.0]).log())  # a = 0 at 4
    dt, A = ssm.log_dt.double().exp(), torch.complex(-ssm.inv_A_real.double().exp(), ssm.A_imag.double())
    expected = 2 * (dt.unsqueeze(-1) * A / 2).atanh()
    log_a, _, _ = ssm()
    torch.testing.assert_close(torch.complex(*log_a).to(expected), expected, rtol=1e-4, atol=0)


def test_parameters_have_the_names_of_the_reference():
    shapes = {
        name: tuple(parameter.shape) for name, parameter in MIXERS["h3"](16, d_state=6, head_dim=4).named_parameters()
    }
    linear = {
        f"{p}.{w}": (16, 16) if w == "weight" else (16,)
        for p in ("q_proj", "k_proj", "v_proj", "output_linear")
        for w in ("weight", "bias")
    }
    assert shapes == {
        **linear,
        "ssm_k_D": (16,),
        "ssm_k_kernel.kernel.B": (16, 6),
        "ssm_k_kernel.kernel.C": (1, 16, 6),
        "D": (4,),
        "kernel.kernel.log_dt": (4,),
        "kernel.kernel.B": (4, 3, 2),
        "kernel.kernel.C": (1, 4, 3, 2),
        "kernel.kernel.inv_A_real": (4, 3),
        "kernel.kernel.A_imag": (4, 3),
    }


@pytest.mark.parametrize(("setting", "value"), [("d_state", 5), ("head_dim", 3)])
def test_impossible_settings_are_named(setting, value):
    with pytest.raises(SettingError, match=setting):
        MIXERS["h3"](16, **{setting: value})
