"""Rotary positions: what they are, and how often their angles are computed."""

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition

from models import build_model
from models.rope import rope


def test_pairs_are_complex_numbers_turned_by_the_angle():
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    position = torch.tensor([[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]])
    angle = position[:, None, :, None] * 100.0 ** -(torch.arange(4, dtype=torch.float64) / 4)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.exp(1j * angle)
    expected = torch.cat([turned.real, turned.imag], -1)
    torch.testing.assert_close(rope(x, position, base=100.0), expected)
    one_by_one = [rope(x[:, :, i : i + 1], position[:, i : i + 1], base=100.0) for i in range(5)]
    torch.testing.assert_close(torch.cat(one_by_one, 2), expected)


def test_a_training_step_computes_the_angles_once_for_all_layers():
    attention = {"name": "attention", "num_heads": 2, "use_rope": True}
    model = build_model({"vocab_size": 9, "d_model": 16, "layers": [attention], "repeats": 3})
    calls = []

    def count(graph, inputs):
        calls.append(sum(node.target is torch.ops.recallbench.rotations.default for node in graph.graph.nodes))
        return make_boxed_func(graph)

    backend = aot_autograd(fw_compiler=count, partition_fn=min_cut_rematerialization_partition)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    compiled(torch.randint(9, (2, 6))).sum().backward()
    assert calls == [1, 0]  # forward, backward
