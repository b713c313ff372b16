"""In-context copying: what followed an n-gram earlier in the text follows it again.

Induction heads do this with n = 1 (Olsson et al. 2022, arXiv 2209.11895), n-gram heads with more (Akyurek et al. 2024,
arXiv 2401.12973); a state of fixed size bounds how long a text can be copied from (Jelassi et al. 2024, arXiv
2402.01032).
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from pydantic import PositiveInt
from torch import Tensor

from models.settings import SettingError
from recallbench.one_axis import OneAxis, Values
from recallbench.task import IGNORED


class NgramCopy(OneAxis):
    """Half a sequence of uniformly random tokens, then spans of it, each from a uniformly drawn place.

    Wherever the last n tokens stood together before, followed by the same token each time, that token is asked for;
    so also where an n-gram returned by chance, and at the end of a span, where the text itself goes on otherwise.

    **Arguments:** `vocab_size`: the fewer tokens, the more often fewer than n of them return with several
    continuations, and all n are needed; `span`: tokens of a copied span; `ngram`: n.
    """

    axis = "ngram"

    def __init__(
        self,
        vocab_size: Annotated[int, Ge(2)] = 32,
        sequence_length: PositiveInt = 64,
        span: PositiveInt = 8,
        ngram: Values = (1, 2, 3),
        test_ngram: Values | None = None,
        num_examples: PositiveInt = 25_000,
        num_test_examples: PositiveInt = 1000,
        seed: Annotated[int, Ge(0)] = 0,
    ):
        self.span = span
        super().__init__(vocab_size, sequence_length, ngram, test_ngram, num_examples, num_test_examples, seed)

    def check(self, setting: str, value: int) -> None:
        if 2 * self.span > self.length:
            raise SettingError("span", self.span, f"it must fit into half the sequence, {self.length // 2} tokens")
        if value >= self.span:
            expected = f"with its continuation it must fit into a span of {self.span} tokens"
            raise SettingError(setting, value, expected)
        if self.vocab_size**value >= 2**63:
            expected = f"n-grams of a vocabulary of {self.vocab_size} must be told apart by 63 bits"
            raise SettingError(setting, value, expected)

    def rows(self, n: int, value: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        N, span, fresh, device = self.length, self.span, self.length // 2, random.device
        text = torch.randint(self.vocab_size, (n, fresh), generator=random, device=device)
        spans = -(-(N - fresh) // span)  # the last may be cut short
        start = torch.randint(fresh - span + 1, (n, spans), generator=random, device=device)
        source = (start[..., None] + torch.arange(span, device=device)).flatten(1)[:, : N - fresh]
        tokens = torch.cat([text, text.gather(1, source)], dim=1)
        positions = torch.arange(value, N, device=device).expand(n, -1)
        return tokens, positions, continuations(tokens, value, self.vocab_size)


def continuations(tokens: Tensor, order: int, vocab_size: int) -> Tensor:
    """What followed the last `order` tokens whenever they stood together before: [n, N] -> [n, N - order].

    For each position from `order` on; IGNORED where they never did, or were followed now by this, now by that.
    The first n-gram of a row that returns has one continuation, so a row with a repeated n-gram has an answer.
    """
    N = tokens.shape[1]
    gram = torch.zeros_like(tokens[:, order - 1 :])
    for i in range(order):
        gram = gram * vocab_size + tokens[:, i : N - order + 1 + i]
    gram, place = gram.sort(dim=1, stable=True)  # equal n-grams side by side, in order of time
    follower = F.pad(tokens[:, order:], (0, 1)).gather(1, place)  # none asks what follows the last n-gram: it is last
    returns = F.pad(gram[:, 1:] == gram[:, :-1], (1, 0))
    previous = follower.roll(1, dims=1)
    # Settled is what returns while the changes of continuation, counted along the row, are those at its first place.
    changes = (follower != previous).cumsum(dim=1)
    at_first = changes.masked_fill(returns, 0).cummax(dim=1).values
    settled = returns & (changes.roll(1, dims=1) == at_first)
    answers = torch.where(settled, previous, IGNORED)
    return torch.empty_like(answers).scatter_(1, place, answers)[:, 1:]
