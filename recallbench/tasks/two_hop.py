"""Recall in several steps: pairs form chains, and the answer to a chain's first token is its last.

From a -> b and b -> c, far apart and in any order, a leads to c. Each step is one lookup of MQAR, but what is looked
up second is known only after the first. Source: function composition in Peng et al. 2024, arXiv 2402.08164, and the
k-hop induction heads of Sanford et al. 2024, arXiv 2402.09268.
"""

from typing import Annotated

import torch
from annotated_types import Ge
from pydantic import PositiveInt
from torch import Tensor

from models.settings import SettingError
from recallbench.draws import distinct
from recallbench.one_axis import OneAxis, Values


class TwoHop(OneAxis):
    """Pairs in random order, then the first token of each chain, which asks for the last.

    Token 0 opens each pair and each question: a token of a chain is now the first, now the second of a pair, so the
    vocabulary does not tell which. All other tokens may stand in chains, each at most once in a row.

    **Arguments:** `num_kv_pairs`: pairs of a row; `hops`: pairs of a chain, so that a row has num_kv_pairs / hops
    chains. The pairs to remember are equally many at any number of hops; 1 is plain recall.
    """

    axis = "hops"

    def __init__(
        self,
        vocab_size: Annotated[int, Ge(3)] = 8192,
        sequence_length: PositiveInt = 64,
        num_kv_pairs: PositiveInt = 12,
        hops: Values = (1, 2),
        test_hops: Values | None = None,
        num_examples: PositiveInt = 25_000,
        num_test_examples: PositiveInt = 1000,
        seed: Annotated[int, Ge(0)] = 0,
    ):
        self.num_kv_pairs = num_kv_pairs
        super().__init__(vocab_size, sequence_length, hops, test_hops, num_examples, num_test_examples, seed)

    def check(self, setting: str, value: int) -> None:
        pairs, (chains, over) = self.num_kv_pairs, divmod(self.num_kv_pairs, value)
        if over:
            raise SettingError(setting, value, f"it must divide num_kv_pairs = {pairs}, for the chains to be whole")
        if self.length < 3 * pairs + 2 * chains:
            expected = f"{pairs} pairs and the questions of {chains} chains need at least {3 * pairs + 2 * chains}"
            raise SettingError("sequence_length", self.length, expected)
        if self.vocab_size < chains * (value + 1) + 1:
            expected = f"{chains} chains of {value + 1} tokens need at least {chains * (value + 1) + 1}"
            raise SettingError("vocab_size", self.vocab_size, expected)

    def rows(self, n: int, value: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        pairs, chains = self.num_kv_pairs, self.num_kv_pairs // value
        chain = distinct(n, chains * (value + 1), 1, self.vocab_size, random).view(n, chains, value + 1)
        order = distinct(n, pairs, 0, pairs, random)
        tokens = torch.zeros(n, self.length, dtype=torch.int64, device=random.device)
        tokens[:, 1 : 3 * pairs : 3] = chain[:, :, :-1].flatten(1).gather(1, order)
        tokens[:, 2 : 3 * pairs : 3] = chain[:, :, 1:].flatten(1).gather(1, order)
        # Each question takes two places, the first of them blank.
        places = (self.length - 3 * pairs) // 2
        positions = 3 * pairs + 2 * distinct(n, chains, 0, places, random) + 1
        tokens.scatter_(1, positions, chain[:, :, 0])
        return tokens, positions, chain[:, :, -1]
