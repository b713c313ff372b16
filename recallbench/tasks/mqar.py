"""Multi-query associative recall: a sequence opens with key-value pairs and asks for each value once, further on.

Source: Arora et al. 2023 ("Zoology"), arXiv 2312.04927, section 4 and appendix; the grid of Arora et al. 2024
("Based"), arXiv 2402.18668, Figure 2.
"""

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Len
from pydantic import BaseModel, ConfigDict, FiniteFloat, PositiveInt
from torch import Tensor

from models.settings import SettingError
from recallbench.draws import ROWS, distinct
from recallbench.task import Examples, Split, Task, generator


class Segment(BaseModel):
    """Examples of one shape."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    sequence_length: PositiveInt
    num_kv_pairs: PositiveInt
    num_examples: PositiveInt


class MQAR(Task):
    """MQAR as published.

    **Arguments:** either `sequence_length` N, `num_kv_pairs`, `num_examples` and `num_test_examples` (for validation
    as much as for test), for one shape throughout, or `train` and `test`, a list of segments each. `vocab_size`: half
    of it keys, half of it values. `power` a of the law of the gaps, p_j proportional to j^(a - 1).
    """

    def __init__(
        self,
        vocab_size: Annotated[int, Ge(4)] = 8192,
        sequence_length: PositiveInt | None = None,
        num_kv_pairs: PositiveInt | None = None,
        num_examples: PositiveInt | None = None,
        num_test_examples: PositiveInt | None = None,
        train: Annotated[list[Segment], Len(1)] | None = None,
        test: Annotated[list[Segment], Len(1)] | None = None,
        power: Annotated[FiniteFloat, Gt(0)] = 0.01,
        seed: Annotated[int, Ge(0)] = 0,
    ):
        shape = {"sequence_length": sequence_length, "num_kv_pairs": num_kv_pairs}
        sizes = {"num_examples": num_examples, "num_test_examples": num_test_examples}
        if train is not None and test is not None:
            for name, value in {**shape, **sizes}.items():
                if value is not None:
                    raise SettingError(name, value, "it must be null where train and test list their own segments")
        elif train is not None or test is not None:
            missing = "test" if test is None else "train"
            raise SettingError(missing, None, "segments must be given for both train and test, or for neither")
        else:
            N, pairs = sequence_length or 64, num_kv_pairs or 4
            train, test = (
                [Segment(sequence_length=N, num_kv_pairs=pairs, num_examples=n)]
                for n in (num_examples or 100_000, num_test_examples or 1000)
            )
        for segment in (*train, *test):
            _check_fits(segment, vocab_size)
        self.vocab_size, self.train, self.test, self.power, self.seed = vocab_size, train, test, power, seed

    @property
    def sequence_length(self) -> int:
        return max(segment.sequence_length for segment in self.test)

    def examples(self, split: Split, device: torch.device | str) -> list[Examples]:
        made_on = device if split == "train" else "cpu"
        return [
            mqar(segment, self.vocab_size, self.power, generator(made_on, self.seed, split, i)).to(device)
            for i, segment in enumerate(self.train if split == "train" else self.test)
        ]


def mqar(segment: Segment, vocab_size: int, power: float, random: torch.Generator) -> Examples:
    """Examples of one segment, made on the device of `random`."""
    N, pairs, device = segment.sequence_length, segment.num_kv_pairs, random.device
    tokens = torch.empty(segment.num_examples, N, dtype=torch.int64, device=device)
    positions, targets = torch.empty(2, segment.num_examples, pairs, dtype=torch.int64, device=device)
    for rows in zip(tokens.split(ROWS), positions.split(ROWS), targets.split(ROWS), strict=True):
        _fill(*rows, vocab_size, power, random)
    return Examples(tokens, positions, targets, {"sequence_length": N, "num_kv_pairs": pairs})


def _fill(
    tokens: Tensor, positions: Tensor, targets: Tensor, vocab_size: int, power: float, random: torch.Generator
) -> None:
    """Write rows of tokens [n, N], positions [n, pairs] and targets [n, pairs], question i asking for pair i."""
    (n, N), pairs, half = tokens.shape, positions.shape[1], vocab_size // 2
    keys = distinct(n, pairs, 1, half, random)
    values = distinct(n, pairs, half, vocab_size, random)
    # Drawing without replacement, each time in proportion to p_j, is a race: whoever's exponential of rate p_j rings
    # first is drawn first.
    space = (N - 2 * pairs) // 2
    p = torch.arange(1, space + 1, device=random.device) ** (power - 1)
    race = torch.rand(n, space, generator=random, device=random.device).neg_().log1p_().neg_().div_(p)
    gap = race.topk(pairs, dim=1, largest=False, sorted=True).indices
    positions.copy_(gap.mul_(2).add_(2 * pairs))
    targets.copy_(values)
    tokens.random_(vocab_size, generator=random)
    tokens[:, 0 : 2 * pairs : 2] = keys
    tokens[:, 1 : 2 * pairs : 2] = values
    tokens.scatter_(1, positions, keys)


def _check_fits(segment: Segment, vocab_size: int) -> None:
    N, pairs = segment.sequence_length, segment.num_kv_pairs
    if 4 * pairs > N:
        raise SettingError(
            "num_kv_pairs", pairs, f"a sequence of length {N} holds at most {N // 4} pairs and their questions"
        )
    if pairs > vocab_size // 2 - 1:
        raise SettingError(
            "vocab_size", vocab_size, f"{pairs} distinct keys need a vocabulary of at least {2 * (pairs + 1)} tokens"
        )
