"""What every entry of the registry must satisfy; a new task is covered on the day it is added."""

import pytest
import torch

from models.settings import construct, schema
from recallbench.task import IGNORED, Task
from recallbench.tasks import TASKS

FEW = {"num_examples": 300, "num_test_examples": 200}
"""Settings that make a task small, where it has them."""


@pytest.fixture(params=TASKS)
def task(request) -> Task:
    cls = TASKS[request.param]
    return construct(cls, {name: value for name, value in FEW.items() if name in schema(cls).model_fields})


@pytest.mark.parametrize("name", TASKS)
def test_every_task_constructs_without_arguments(name):
    assert TASKS[name]().vocab_size > 0


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_examples_keep_the_contract(task, split):
    slices = task.examples(split, "cpu")
    for found in slices:
        (n, N), Q = found.tokens.shape, found.positions.shape[1]
        assert n == len(found) > 0
        assert found.positions.shape == found.targets.shape == (n, Q)
        assert found.tokens.dtype == found.positions.dtype == found.targets.dtype == torch.int64
        assert ((found.tokens >= 0) & (found.tokens < task.vocab_size)).all()
        assert ((found.positions >= 0) & (found.positions < N)).all()
        asked = found.targets != IGNORED
        assert asked.any(dim=1).all()  # a row that asks nothing has no accuracy
        assert (~asked | ((found.targets >= 0) & (found.targets < task.vocab_size))).all()
        labels = found.labels()
        assert labels.shape == found.tokens.shape
        assert ((labels != IGNORED).sum(1) == asked.sum(1)).all()  # no position is asked twice
        assert torch.equal(labels.gather(1, found.positions)[asked], found.targets[asked])
        assert all(isinstance(key, str) and isinstance(value, int) for key, value in found.slice.items())
    keys = [tuple(found.slice) for found in slices]
    assert len(set(keys)) == 1
    assert len({tuple(found.slice.values()) for found in slices}) == len(slices)
    if split == "test":
        assert max(found.tokens.shape[1] for found in slices) == task.sequence_length


def test_examples_are_made_by_the_seed_alone(task):
    for split in ("train", "validation", "test"):
        before = torch.random.get_rng_state()
        first, again = task.examples(split, "cpu"), task.examples(split, "cpu")
        assert torch.equal(torch.random.get_rng_state(), before)
        for a, b in zip(first, again, strict=True):
            assert all(map(torch.equal, a[:3], b[:3]))


def test_what_is_tested_is_hardly_ever_trained_on(task):
    train, validation, test = (
        {tuple(row) for found in task.examples(split, "cpu") for row in found.tokens.tolist()}
        for split in ("train", "validation", "test")
    )
    assert len(test & train) <= len(test) / 10
    assert len(validation & train) <= len(validation) / 10
    assert len(test & validation) <= len(test) / 10
