"""Tasks with one axis of difficulty: a whole number, with a slice for each of its values."""

from abc import abstractmethod
from typing import Annotated, ClassVar

import torch
from annotated_types import Len
from pydantic import BeforeValidator, PositiveInt
from torch import Tensor

from models.settings import SettingError
from recallbench.draws import ROWS
from recallbench.task import Examples, Split, Task, generator

LISTED = BeforeValidator(lambda given: tuple(given) if isinstance(given, list) else (given,))
"""Lets a configuration give a list or one entry of it; the tuple that comes of both is safe as a default."""

Values = Annotated[tuple[PositiveInt, ...], LISTED, Len(1)]
"""Values of an axis."""


class OneAxis(Task):
    """Rows of one length, made slice by slice.

    A subclass names its `axis`, makes `rows` and checks that there can be such (`check`). Its settings are named
    after the axis: `hops`, the values trained on, and `test_hops`, those of validation and test, by default the same.
    A slice is the same whichever other values stand beside it.

    **Arguments:** `num_examples`, `num_test_examples`: of each slice. What `check` reads must be set before.
    """

    axis: ClassVar[str]

    def __init__(
        self,
        vocab_size: int,
        sequence_length: int,
        train: tuple[int, ...],
        test: tuple[int, ...] | None,
        num_examples: int,
        num_test_examples: int,
        seed: int,
    ):
        self.vocab_size, self.length, self.seed = vocab_size, sequence_length, seed
        self.train, self.test = train, train if test is None else test
        self.num_examples, self.num_test_examples = num_examples, num_test_examples
        for setting, values in ((self.axis, self.train), (f"test_{self.axis}", self.test)):
            if len(set(values)) < len(values):
                raise SettingError(setting, list(values), "it must not name a value twice")
            for value in values:
                self.check(setting, value)

    @property
    def sequence_length(self) -> int:
        return self.length

    @abstractmethod
    def check(self, setting: str, value: int) -> None:
        """**Raises** `SettingError` if no row has this value of the axis, which `setting` asks for."""

    @abstractmethod
    def rows(self, n: int, value: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [n, N], positions [n, Q] and targets [n, Q], made on the device of `random`."""

    def examples(self, split: Split, device: torch.device | str) -> list[Examples]:
        made_on = device if split == "train" else "cpu"
        values, n = (self.train, self.num_examples) if split == "train" else (self.test, self.num_test_examples)
        return [self._slice(n, value, generator(made_on, self.seed, split, value)).to(device) for value in values]

    def _slice(self, n: int, value: int, random: torch.Generator) -> Examples:
        parts = [self.rows(min(ROWS, n - made), value, random) for made in range(0, n, ROWS)]
        tokens, positions, targets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return Examples(tokens, positions, targets, {"sequence_length": self.length, self.axis: value})
