"""A language model and its tokeniser as one thing that reads prompts: each is read once, then every token is a step."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models import LanguageModel
from models.huggingface import HuggingFaceModel
from recallbench.interrupt import Stopped, StopRequest
from recallbench.text.tokenizer import Tokenizer

SPREAD = 32
"""By so many tokens at most prompts of a batch differ in length, since what is beyond the shortest is read in steps."""


@dataclass
class Reader:
    """Greedy generation and scoring, in batches.

    **Arguments:** `prefix`: tokens before every prompt, such as the start of a text; `context`: tokens that a prompt
    and what is generated may have together; a longer prompt loses its beginning; `read_twice`: a prompt stands twice
    before what is generated or scored (Arora et al. 2024, arXiv 2407.05483, section 3); `tell`: called with how many
    prompts are done, and of how many.
    """

    model: LanguageModel | HuggingFaceModel
    tokenizer: Tokenizer
    context: int
    batch_size: int
    prefix: Sequence[int] = ()
    read_twice: bool = False
    stop: StopRequest | None = None
    tell: Callable[[int, int], None] = lambda done, of: None
    tokens_read: int = field(default=0, init=False)
    tokens_generated: int = field(default=0, init=False)

    def room(self, generated: int) -> int:
        """How many tokens of a prompt are read where so many are to be generated."""
        room = self.context - generated - len(self.prefix)
        return (room - len(self._between)) // 2 if self.read_twice else room

    def prompt(self, tokens: Sequence[int], generated: int) -> list[int]:
        """What the model reads: the prefix, and of `tokens` the last that there is room for, once or twice."""
        room = self.room(generated)
        if room < 1:
            raise ValueError(f"a context of {self.context} tokens has no room for a prompt and {generated} more")
        last = list(tokens[-room:])
        read = [*self.prefix, *last, *self._between, *last] if self.read_twice else [*self.prefix, *last]
        return read or [self.tokenizer.end]

    def generate(self, prompts: Sequence[str], count: int, until: Sequence[str]) -> list[str]:
        """What follows each prompt, greedily, `count` tokens at most, up to the first of `until`."""
        read = [self.prompt(tokens, count) for tokens in self.tokenizer.encode_batch(prompts)]
        texts = [""] * len(prompts)
        done = 0
        for rows in batches([len(tokens) for tokens in read], self.batch_size):
            self._look_up()
            written = continuations(
                self.model,
                [read[row] for row in rows],
                count,
                vocab_size=self.tokenizer.vocab_size,
                ends=lambda tokens: tokens[-1] == self.tokenizer.end or self._cut(tokens, until)[1],
            )
            for row, tokens in zip(rows, written, strict=True):
                texts[row] = self._cut(tokens, until)[0]
            self.tokens_read += sum(len(read[row]) for row in rows)
            self.tokens_generated += sum(map(len, written))
            done += len(rows)
            self.tell(done, len(prompts))
        return texts

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """Of each (context, continuation), the tokens as they are: log p(continuation | context), and whether all of
        the continuation is the likeliest.
        """
        scores = [(0.0, False)] * len(pairs)
        lengths = [len(before) + len(after) for before, after in pairs]
        done = 0
        for rows in batches(lengths, self.batch_size, spread=None):
            self._look_up()
            for row, scored in zip(rows, log_likelihoods(self.model, [pairs[row] for row in rows]), strict=True):
                scores[row] = scored
            self.tokens_read += sum(lengths[row] for row in rows)
            done += len(rows)
            self.tell(done, len(pairs))
        return scores

    @property
    def _between(self) -> list[int]:
        """What stands between a prompt and its repetition."""
        return self.tokenizer.encode("\n") if self.read_twice else []

    def _cut(self, tokens: Sequence[int], until: Sequence[str]) -> tuple[str, bool]:
        """The text up to the first of `until`, and whether one of them is in it."""
        text = self.tokenizer.decode([token for token in tokens if token != self.tokenizer.end])
        at = min((found for term in until if term and (found := text.find(term)) >= 0), default=None)
        return text[:at], at is not None

    def _look_up(self) -> None:
        if self.stop is not None and self.stop.made:
            raise Stopped


def batches(lengths: Sequence[int], batch_size: int, spread: int | None = SPREAD) -> Iterable[list[int]]:
    """Rows of similar length together, the longest first, so that too little memory shows at once."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        apart = batch and spread is not None and lengths[batch[0]] - lengths[row] > spread
        if len(batch) == batch_size or apart:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@torch.no_grad()
def continuations(
    model: LanguageModel | HuggingFaceModel,
    prompts: Sequence[Sequence[int]],
    count: int,
    *,
    vocab_size: int,
    ends: Callable[[list[int]], bool],
) -> list[list[int]]:
    """The likeliest next tokens behind each prompt, `count` of them or up to where `ends` says so.

    The common length n of all prompts is read in parallel form. From there on all rows go on in steps: a row whose
    prompt is longer reads on in it, the others read what they wrote, so that no state ever sees a padding token.
    """
    device = next(model.parameters()).device
    lengths = [len(prompt) for prompt in prompts]
    n, N = min(lengths), max(lengths)
    tokens = torch.zeros(len(prompts), N, dtype=torch.int64)  # [B, N]
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    last = torch.full((len(prompts), 1), n - 1, device=device)
    state = model.init_state(len(prompts), max_length=N + count)
    logits, state = model.prefill(tokens[:, :n].to(device), state, last)
    logits = logits[:, 0]  # [B, vocabulary]
    written: list[list[int]] = [[] for _ in prompts]
    over = [False] * len(prompts)
    for t in range(n, N + count):
        likeliest = logits[:, :vocab_size].argmax(-1).tolist()
        token = []
        for row, best in enumerate(likeliest):
            reads_on = t < lengths[row]
            token.append(int(tokens[row, t]) if reads_on else best)
            if not reads_on and not over[row]:
                written[row].append(best)
                over[row] = len(written[row]) == count or ends(written[row])
        if all(over):
            break
        logits, state = model.step(torch.tensor(token, device=device), state)
    return written


@torch.no_grad()
def log_likelihoods(
    model: LanguageModel | HuggingFaceModel, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[tuple[float, bool]]:
    """Of each (context, continuation): its log-likelihood, and whether every token of it is the likeliest.

    In parallel form; rows are filled up on the right, which what is before does not see.
    """
    device = next(model.parameters()).device
    N = max(len(before) + len(after) for before, after in pairs) - 1
    Q = max(len(after) for _, after in pairs)
    tokens, positions, targets = torch.zeros(len(pairs), N + 2 * Q, dtype=torch.int64).split([N, Q, Q], dim=1)
    asked = torch.zeros(len(pairs), Q, dtype=torch.bool)
    for row, (before, after) in enumerate(pairs):
        tokens[row, : len(before) + len(after) - 1] = torch.tensor([*before, *after][:-1])
        positions[row, : len(after)] = torch.arange(len(after)) + len(before) - 1
        targets[row, : len(after)] = torch.tensor(after)
        asked[row, : len(after)] = True
    logits = model(tokens.contiguous().to(device), positions.contiguous().to(device)).float()  # [B, Q, vocabulary]
    answer, asked = targets.contiguous().to(device), asked.to(device)
    chosen: Tensor = logits.log_softmax(-1).gather(-1, answer[..., None])[..., 0]
    greedy = ((logits.argmax(-1) == answer) | ~asked).all(1)
    return list(zip((chosen * asked).sum(1).tolist(), greedy.tolist(), strict=True))
