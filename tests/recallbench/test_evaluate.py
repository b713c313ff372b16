"""Metrics against plain loops: means over examples of the mean over the questions of each."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recallbench.task import IGNORED, Examples
from recallbench.train import evaluate

VOCABULARY, M = 7, 2


def logits(parameters, tokens, positions):
    """Some function of the tokens up to each position, one for each member: [M, B, Q, vocabulary]."""
    before = torch.arange(tokens.shape[1])[None, None] <= positions[..., None]
    read = torch.where(before, tokens[:, None], 0).sum(-1)  # [B, Q]
    return torch.sin(read[None, ..., None] * parameters["scale"][:, None, None, None] + torch.arange(VOCABULARY))


def answers(parameters, tokens, positions, targets):
    x = logits(parameters, tokens, positions)
    own = targets.clamp_min(0).expand(x.shape[:-1])[..., None]
    losses = x.logsumexp(-1) - x.gather(-1, own)[..., 0]
    return torch.where(targets != IGNORED, losses, 0), x.argmax(-1)


def by_hand(parameters, slices):
    table = []
    for examples in slices:
        for row in range(len(examples)):
            shares = []
            for position, target in zip(examples.positions[row], examples.targets[row], strict=True):
                if target == IGNORED:
                    continue
                x = logits(parameters, examples.tokens[row : row + 1], position[None, None])[:, 0, 0].double()
                loss = [math.log(sum(math.exp(v) for v in m)) - m[target] for m in x.tolist()]
                right = [max(range(VOCABULARY), key=m.__getitem__) == target for m in x.tolist()]
                shares.append([[float(r), v] for r, v in zip(right, loss, strict=True)])
            table.append(torch.tensor(shares).mean(0))
    return torch.stack(table).mean(0).tolist()  # [M, (accuracy, loss)]


@settings(max_examples=25, derandomize=True)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 4)), min_size=1, max_size=3),
    batch_size=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_metrics_are_means_of_means(sizes, batch_size, seed):
    random = torch.Generator().manual_seed(seed)
    slices = []
    for i, (n, Q) in enumerate(sizes):
        tokens = torch.randint(VOCABULARY, (n, 6), generator=random)
        positions = torch.rand(n, 6, generator=random).argsort(1)[:, :Q]
        targets = torch.randint(VOCABULARY, (n, Q), generator=random)
        targets[:, 1:][torch.rand(n, Q - 1, generator=random) < 0.4] = IGNORED  # ragged: some rows ask less
        slices.append(Examples(tokens, positions, targets, {"number": i}))
    parameters = {"scale": torch.tensor([0.3, 1.7])}
    overall, by_slice = evaluate(answers, parameters, slices, batch_size)
    for i, (accuracy, loss) in enumerate(by_hand(parameters, slices)):
        assert overall[i] == pytest.approx({"accuracy": accuracy, "loss": loss}, rel=1e-5, abs=1e-7)
    for examples, *of_members in zip(slices, *by_slice, strict=True):
        for i, (accuracy, loss) in enumerate(by_hand(parameters, [examples])):
            entry = {**examples.slice, "accuracy": accuracy, "loss": loss, "examples": len(examples)}
            assert of_members[i] == pytest.approx(entry, rel=1e-5, abs=1e-7)


def test_a_loss_that_is_not_finite_is_none():
    examples = Examples(torch.ones(2, 3, dtype=torch.int64), *torch.tensor([[[2], [2]], [[1], [1]]]), {"number": 0})
    overall, by_slice = evaluate(answers, {"scale": torch.tensor([0.5, math.inf])}, [examples], 2)
    assert overall[0]["loss"] > 0
    assert overall[1]["loss"] is by_slice[1][0]["loss"] is None
