"""A needle in a haystack: one key-value pair somewhere in a long random text, asked for at its end.

Accuracy by depth tells what a state has lost between reading and being asked. Source: Kamradt 2023,
github.com/gkamradt/LLMTest_NeedleInAHaystack; with several needles, the multi-key variant of RULER, Hsieh et al. 2024,
arXiv 2404.06654.
"""

from typing import Annotated

import torch
from annotated_types import Ge, Le, Len, Lt
from pydantic import PositiveInt
from torch import Tensor

from models.settings import SettingError
from recallbench.draws import distinct
from recallbench.one_axis import LISTED, OneAxis

Depths = Annotated[tuple[Annotated[int, Ge(0), Lt(100)], ...], LISTED, Len(1)]


class Needle(OneAxis):
    """Random text with needles in it; the last token is the key of one of them and asks for its value.

    A third of the vocabulary makes the text, a third keys and a third values. The depth of a needle is the share of
    the text before it, in percent, any needle counting as one token.

    **Arguments:** `num_needles`: the one asked for and, in places drawn from the whole text, others beside it; `depth`:
    where, in percent, the range begins from which the depth of the needle asked for is drawn uniformly; `depth_range`:
    how many percent it is wide.
    """

    axis = "depth"

    def __init__(
        self,
        vocab_size: Annotated[int, Ge(3)] = 8192,
        sequence_length: Annotated[int, Ge(4)] = 256,
        num_needles: PositiveInt = 1,
        depth: Depths = (0, 25, 50, 75),
        test_depth: Depths | None = None,
        depth_range: Annotated[int, Ge(1), Le(100)] = 25,
        num_examples: PositiveInt = 25_000,
        num_test_examples: PositiveInt = 1000,
        seed: Annotated[int, Ge(0)] = 0,
    ):
        self.num_needles, self.depth_range = num_needles, depth_range
        self.places = sequence_length - 1 - num_needles  # of tokens and needles, before the question
        super().__init__(vocab_size, sequence_length, depth, test_depth, num_examples, num_test_examples, seed)

    def check(self, setting: str, value: int) -> None:
        if self.places < self.num_needles:
            expected = f"a sequence of length {self.length} holds at most {(self.length - 1) // 2} needles"
            raise SettingError("num_needles", self.num_needles, expected)
        if self.vocab_size // 3 < self.num_needles:
            expected = f"{self.num_needles} needles need at least {3 * self.num_needles} tokens, a third of them keys"
            raise SettingError("vocab_size", self.vocab_size, expected)
        if value + self.depth_range > 100:
            expected = f"{self.depth_range} percent from there on must end within the text"
            raise SettingError(setting, value, expected)
        if len(self.at_depth(value)) == 0:
            expected = f"no place of {self.places} is at {value} to {value + self.depth_range} percent"
            raise SettingError("sequence_length", self.length, expected)

    def at_depth(self, depth: int) -> range:
        """The places p with depth <= 100 p / places < depth + depth_range."""
        return range(-(-depth * self.places // 100), -(-(depth + self.depth_range) * self.places // 100))

    def rows(self, n: int, value: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        third, count, device, depths = self.vocab_size // 3, self.num_needles, random.device, self.at_depth(value)
        asked = torch.randint(depths.start, depths.stop, (n, 1), generator=random, device=device)
        others = distinct(n, count - 1, 0, self.places - 1, random)
        place = torch.cat([asked, others + (others >= asked)], dim=1)  # [n, needles], all different
        start = place + (place[:, :, None] > place[:, None, :]).sum(2)  # a needle before it is two tokens long
        keys = distinct(n, count, third, 2 * third, random)
        values = distinct(n, count, 2 * third, self.vocab_size, random)
        tokens = torch.randint(third, (n, self.length), generator=random, device=device)
        tokens.scatter_(1, start, keys).scatter_(1, start + 1, values)
        tokens[:, -1] = keys[:, 0]
        return tokens, torch.full_like(asked, self.length - 1), values[:, :1]
