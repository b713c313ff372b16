"""Recall of values of several tokens by keys of several tokens, among noise.

A key is a word over few tokens, which other keys share, so all of its tokens must be matched; what stands between the
pairs must be kept out of the state. Source: the noisy and the fuzzy in-context recall of MAD, Poli et al. 2024, arXiv
2403.17844.
"""

from typing import Annotated

import torch
from annotated_types import Ge, Le
from pydantic import PositiveInt
from torch import Tensor

from models.settings import SettingError
from recallbench.draws import distinct
from recallbench.one_axis import OneAxis, Values


class NoisyRecall(OneAxis):
    """Every pair once, then every pair once more in another order; the second time, each token of the value is asked.

    The pairs stand in random places, as whole as they are. Between them is token 0 or noise. A third of the
    vocabulary is 0 and noise, a third makes keys and a third values; neither keys nor values repeat within a row. A
    value is asked token by token, its earlier tokens being there to read.

    **Arguments:** `key_tokens`, `value_tokens`: tokens of a key, of a value; `noise`: the share of the places between
    pairs that hold a random token, the others holding 0.
    """

    axis = "num_kv_pairs"

    def __init__(
        self,
        vocab_size: Annotated[int, Ge(6)] = 64,
        sequence_length: PositiveInt = 128,
        num_kv_pairs: Values = (2, 4, 8),
        test_num_kv_pairs: Values | None = None,
        key_tokens: PositiveInt = 2,
        value_tokens: PositiveInt = 2,
        noise: Annotated[float, Ge(0), Le(1)] = 0.5,
        num_examples: PositiveInt = 25_000,
        num_test_examples: PositiveInt = 1000,
        seed: Annotated[int, Ge(0)] = 0,
    ):
        self.key_tokens, self.value_tokens, self.noise = key_tokens, value_tokens, noise
        self.third = vocab_size // 3
        super().__init__(
            vocab_size, sequence_length, num_kv_pairs, test_num_kv_pairs, num_examples, num_test_examples, seed
        )

    def check(self, setting: str, value: int) -> None:
        room = self.length // (2 * (self.key_tokens + self.value_tokens))
        if value > room:
            expected = f"a sequence of length {self.length} holds at most {room} pairs of such length twice"
            raise SettingError(setting, value, expected)
        for name, count in (("key_tokens", self.key_tokens), ("value_tokens", self.value_tokens)):
            if self.vocab_size**count >= 2**63:
                expected = f"words of a vocabulary of {self.vocab_size} must be told apart by 63 bits"
                raise SettingError(name, count, expected)
            if self.third**count < value:
                expected = f"words of {count} letters out of {self.third} (a third of it) are fewer than {value}"
                raise SettingError("vocab_size", self.vocab_size, expected)

    def rows(self, n: int, value: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        N, third, device = self.length, self.third, random.device
        keys = third + words(n, value, self.key_tokens, third, random)
        values = 2 * third + words(n, value, self.value_tokens, self.vocab_size - 2 * third, random)
        pairs = torch.cat([keys, values], dim=-1)  # [n, pairs, tokens of a pair]
        asked = pairs.gather(1, distinct(n, value, 0, value, random)[..., None].expand_as(pairs))
        pairs = torch.cat([pairs, asked], dim=1)

        # Where pairs stand: in a row of items, each a whole pair or one token between pairs, some items are pairs.
        count, longer = 2 * value, pairs.shape[2] - 1
        item = distinct(n, count, 0, N - count * longer, random).sort(dim=1).values
        start = item + longer * torch.arange(count, device=device)
        places = start[..., None] + torch.arange(longer + 1, device=device)  # [n, 2 pairs, tokens of a pair]

        noise = torch.randint(1, third, (n, N), generator=random, device=device)
        noisy = torch.rand(n, N, generator=random, device=device) < self.noise
        tokens = torch.where(noisy, noise, 0).scatter_(1, places.flatten(1), pairs.flatten(1))
        positions = places[:, value:, self.key_tokens - 1 : -1].flatten(1)
        return tokens, positions, asked[:, :, self.key_tokens :].flatten(1)


def words(n: int, count: int, length: int, letters: int, random: torch.Generator) -> Tensor:
    """Uniform words of `length` letters 0 .. letters - 1, all different within a row: [n, count, length]."""
    word = distinct(n, count, 0, letters**length, random)
    digit = letters ** torch.arange(length, device=random.device)
    return word[..., None] // digit % letters
