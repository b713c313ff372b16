"""A stream of tokens in memory-mapped files, and windows of it as training reads them."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recallbench.disk import write_atomically


def token_type(vocab_size: int) -> type[np.unsignedinteger]:
    """The smallest in which every token fits."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def write_shard(path: Path, tokens: NDArray[np.integer]) -> None:
    """Numbers [n] as an `.npy` file, whole or not at all. **Raises** `DiskTrouble`."""
    buffer = io.BytesIO()
    np.save(buffer, tokens)
    write_atomically(path, buffer.getbuffer())


class Stream:
    """The tokens `start` .. `stop` - 1 of the shards, one after the other, without loading them."""

    def __init__(self, shards: Sequence[Path], start: int, stop: int):
        self.arrays = [np.load(path, mmap_mode="r") for path in shards]
        self.ends = np.cumsum([len(array) for array in self.arrays])
        self.start, self.stop = start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        """So many tokens from `start` on, wherever shards end."""
        parts, at, left = [], self.start + start, length
        while left:
            shard = int(np.searchsorted(self.ends, at, side="right"))
            within = at - (int(self.ends[shard - 1]) if shard else 0)
            part = self.arrays[shard][within : within + left]
            parts.append(part)
            at, left = at + len(part), left - len(part)
        return np.concatenate(parts).astype(np.int64)

    def windows(self, length: int) -> int:
        """How many windows of so many tokens, none shared, have a token behind them."""
        return max(0, (len(self) - 1) // length)

    def rows(self, windows: Sequence[int], length: int) -> Tensor:
        """Windows with the token behind each: [B, N + 1]."""
        return torch.from_numpy(np.stack([self.read(i * length, length + 1) for i in windows]))


class Order:
    """The windows of each step: all of them in a random order, then all again in another, and so on.

    A function of the seed and the step alone, so that a run which goes on from a step reads what it would have read.
    """

    def __init__(self, windows: int, batch_size: int, seed: int):
        self.windows, self.batch_size, self.seed = windows, batch_size, seed
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def __call__(self, step: int) -> list[int]:
        """The windows of a step, counted from 0: `batch_size` of them."""
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [self._at(*divmod(place, self.windows)) for place in places]

    def _at(self, epoch: int, place: int) -> int:
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.windows)
        return int(self._permutation[place])
