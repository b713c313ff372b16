"""Recall of keys that were bound again: of several values that a key had, the last one counts.

A state that sums outer products of keys and values keeps the replaced values beside the last one; one that can be
corrected (the delta rule) or can forget (gates) need not. Source: the retrieval problems of Schlag et al. 2021, arXiv
2102.11174, section 6.1, in which keys come with replacement; laid out as MQAR of Arora et al. 2023, arXiv 2312.04927.
"""

from typing import Annotated

import torch
from annotated_types import Ge
from pydantic import PositiveInt
from torch import Tensor

from models.settings import SettingError
from recallbench.draws import distinct
from recallbench.one_axis import OneAxis, Values


class OverwrittenRecall(OneAxis):
    """A sequence opens with key-value pairs in which keys return with other values, and then asks for each key once.

    Token 0 is blank; keys are 1 .. vocab_size/2 - 1, values the rest. The questions stand in random places after the
    pairs, and the places between them are blank, so that nothing there binds a key by chance.

    **Arguments:** `num_kv_pairs`: distinct keys of a row; `num_bindings`: pairs of a row, all of different values.
    Each key is bound once, and each further binding is of a key drawn anew; their order is random. As many bindings
    as keys overwrite nothing.
    """

    axis = "num_bindings"

    def __init__(
        self,
        vocab_size: Annotated[int, Ge(4)] = 8192,
        sequence_length: PositiveInt = 64,
        num_kv_pairs: PositiveInt = 8,
        num_bindings: Values = (8, 16, 24),
        test_num_bindings: Values | None = None,
        num_examples: PositiveInt = 25_000,
        num_test_examples: PositiveInt = 1000,
        seed: Annotated[int, Ge(0)] = 0,
    ):
        self.num_kv_pairs = num_kv_pairs
        super().__init__(
            vocab_size, sequence_length, num_bindings, test_num_bindings, num_examples, num_test_examples, seed
        )

    def check(self, setting: str, value: int) -> None:
        N, keys = self.length, self.num_kv_pairs
        if 3 * keys > N:
            expected = f"a sequence of length {N} binds and asks for at most {N // 3} keys"
            raise SettingError("num_kv_pairs", keys, expected)
        if value < keys:
            raise SettingError(setting, value, f"each of the {keys} keys is bound at least once")
        if 2 * value + keys > N:
            expected = f"beside {keys} questions, a sequence of length {N} holds at most {(N - keys) // 2} bindings"
            raise SettingError(setting, value, expected)
        least = max(2 * keys + 2, 2 * value - 1)
        if self.vocab_size < least:
            expected = f"{keys} keys and {value} values need a vocabulary of at least {least} tokens"
            raise SettingError("vocab_size", self.vocab_size, expected)

    def rows(self, n: int, value: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        num_keys, half, device = self.num_kv_pairs, self.vocab_size // 2, random.device
        keys = distinct(n, num_keys, 1, half, random)
        values = distinct(n, value, half, self.vocab_size, random)
        once = torch.arange(num_keys, device=device).expand(n, -1)
        further = torch.randint(num_keys, (n, value - num_keys), generator=random, device=device)
        bound = torch.cat([once, further], dim=1).gather(1, distinct(n, value, 0, value, random))  # binding -> its key
        when = torch.arange(value, device=device).expand(n, -1)
        last = torch.zeros_like(keys).scatter_reduce_(1, bound, when, "amax")  # key -> its last binding

        tokens = torch.zeros(n, self.length, dtype=torch.int64, device=device)
        tokens[:, 0 : 2 * value : 2] = keys.gather(1, bound)
        tokens[:, 1 : 2 * value : 2] = values
        positions = distinct(n, num_keys, 2 * value, self.length, random)
        tokens.scatter_(1, positions, keys)
        return tokens, positions, values.gather(1, last)
