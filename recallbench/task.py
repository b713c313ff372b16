"""The contract of a task: sequences of tokens with questions at some positions."""

import hashlib
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

IGNORED = -100
"""The label of a position where nothing is asked."""

Split = Literal["train", "validation", "test"]


class Examples(NamedTuple):
    """n sequences of one shape, which form one slice of a task."""

    tokens: Tensor  # [n, N]
    positions: Tensor  # [n, Q], where the model is asked for the next token
    targets: Tensor  # [n, Q], what it should answer; IGNORED where a row has fewer than Q questions
    slice: dict[str, int]  # what tells this slice from the others, e.g. {"sequence_length": 64, "num_kv_pairs": 8}

    def labels(self) -> Tensor:
        """The dense form [n, N]: the answer at each asked position, IGNORED everywhere else."""
        dense = torch.full_like(self.tokens, IGNORED)
        asked = self.targets != IGNORED
        rows = torch.arange(len(dense), device=dense.device)[:, None].expand_as(asked)
        dense[rows[asked], self.positions[asked]] = self.targets[asked]
        return dense

    def to(self, device: torch.device | str) -> "Examples":
        return Examples(self.tokens.to(device), self.positions.to(device), self.targets.to(device), self.slice)

    def __len__(self) -> int:
        return len(self.tokens)


class Task(ABC):
    """Makes examples. Its constructor's annotated keywords are its configuration schema; it constructs without any.

    The same settings and `seed` give the same examples. Training examples may be made on the device that trains and
    so differ between kinds of device; validation and test examples are the same everywhere.
    """

    vocab_size: int
    seed: int

    @property
    @abstractmethod
    def sequence_length(self) -> int:
        """The longest sequence of the test split, at which state is measured."""

    @abstractmethod
    def examples(self, split: Split, device: torch.device | str) -> list[Examples]:
        """The slices of a split, on `device`. A training batch holds rows of one slice."""


def generator(device: torch.device | str, *key: object) -> torch.Generator:
    """A random stream of its own for each key, e.g. (seed, "test", 3)."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
