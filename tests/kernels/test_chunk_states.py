"""The states between chunks against the recurrence written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.chunk_states import chunk_states, joined_chunk_states

FORMS = pytest.mark.parametrize("form", [chunk_states, joined_chunk_states], ids=["plain", "joined"])


def inputs(B=2, H=3, n=5, K=4, V=6):
    generator = torch.Generator().manual_seed(n)
    shapes = [(B, H, n, K, K), (B, H, n, K, V), (B, H, K, V)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def one_by_one(transition, added, state):
    states = [state]
    for i in range(added.shape[2]):
        states.append(transition[:, :, i] @ states[-1] + added[:, :, i])
    return torch.stack(states, 2)


def results(form, tensors):
    states = form(*tensors)
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(0), dtype=states.dtype)
    return states, *torch.autograd.grad((states * weights).sum(), tensors)


@FORMS
@settings(max_examples=20)
@given(B=st.integers(0, 2), H=st.integers(1, 3), n=st.integers(1, 6), K=st.integers(1, 4), V=st.integers(1, 4))
def test_is_the_recurrence(form, B, H, n, K, V):
    tensors = inputs(B, H, n, K, V)
    torch.testing.assert_close(results(form, tensors), results(one_by_one, tensors), rtol=1e-12, atol=1e-12)


@FORMS
def test_any_strides(form):
    tensors = [t.detach().mT.contiguous().mT.requires_grad_() for t in inputs()]
    torch.testing.assert_close(results(form, tensors), results(one_by_one, tensors), rtol=1e-12, atol=1e-12)


@FORMS
def test_members_are_so_many_more_sequences(form):
    stacked = [torch.stack([t.detach(), 2 * t.detach()]).requires_grad_() for t in inputs()]
    shared = [*stacked[:2], stacked[2][0].detach().requires_grad_()]
    found, expected = (
        results(lambda *t, each=each: torch.func.vmap(each, (0, 0, None))(*t), shared) for each in (form, one_by_one)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_tensors_without_values_have_states_too():
    assert chunk_states(*(t.to("meta") for t in inputs())).shape == (2, 3, 6, 4, 6)


def test_a_compiler_sees_one_operation():
    tensors, seen = inputs(), []

    def backend(module, _):
        seen.extend(node.target for node in module.graph.nodes if node.op == "call_function")
        return module

    compiled = torch.compile(chunk_states, fullgraph=True, backend=backend)
    torch.testing.assert_close(results(compiled, tensors), results(one_by_one, tensors), rtol=1e-12, atol=1e-12)
    assert seen == [torch.ops.recallbench.chunk_states.default]


def test_operations_keep_the_rules_of_torch():
    transition, added, state = inputs()
    torch.library.opcheck(torch.ops.recallbench.chunk_states.default, (transition, added, state))
    dstates = torch.randn(2, 3, 6, 4, 6, dtype=torch.float64)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        torch.ops.recallbench.chunk_states_backward.default, (transition.detach(), dstates), test_utils=tests
    )


@pytest.mark.parametrize("wanted", [torch.bfloat16, None])
def test_is_of_the_dtype_of_products(wanted):
    tensors = [t.float() for t in inputs()]
    with torch.autocast("cpu", wanted or torch.bfloat16, enabled=wanted is not None):
        product = tensors[0] @ tensors[1]
        assert chunk_states(*tensors).dtype == product.dtype
