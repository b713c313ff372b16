"""Tokenisers: from text to tokens and back, whichever library they come from."""

import base64
import binascii
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from models.settings import SettingError
from recallbench.disk import write_atomically

END = "<|endoftext|>"
"""What ends a document, in tokenisers trained here and in those of tiktoken files."""

ENDS = (END, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
"""What it is called in a `tokenizer.json`: the first of these that it has."""

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""Where GPT-2 cuts text before it looks for pairs. Source: Radford et al. 2019, section 2.2, and tiktoken."""


class Tokenizer(Protocol):
    """Text as tokens 0 .. vocab_size - 1. What looks like a special token in a text is text."""

    vocab_size: int
    end: int
    """The token that ends a document."""
    digest: str
    """Equal for tokenisers that are equal."""

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each, on all cores where the library can."""
        ...

    def decode(self, tokens: Sequence[int]) -> str: ...


class Bytes:
    """A token for each byte of UTF-8."""

    vocab_size = 257
    end = 256
    digest = "bytes"

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return list(map(self.encode, texts))

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token != self.end).decode(errors="replace")


class Tiktoken:
    """Byte-pair ranks of a `.tiktoken` file behind GPT-2's pattern, and the end of a document behind the ranks."""

    def __init__(self, path: Path):
        import tiktoken  # noqa: PLC0415 - an extra

        content = path.read_bytes()
        ranks = {}
        for number, line in enumerate(content.splitlines(), 1):
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except (ValueError, binascii.Error):
                expected = f"line {number} must be a token in base64 and its rank"
                raise SettingError("tokenizer", str(path), expected) from None
        if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([b]) not in ranks for b in range(256)):
            expected = "its ranks must count from 0 without a gap, and every single byte must have one"
            raise SettingError("tokenizer", str(path), expected)
        self.end = len(ranks)
        self.vocab_size = len(ranks) + 1
        self.digest = hashlib.sha256(content).hexdigest()
        self._encoding = tiktoken.Encoding(
            path.stem, pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END: self.end}
        )

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._encoding.encode_ordinary_batch(list(texts), num_threads=os.cpu_count() or 1)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._encoding.decode([token for token in tokens if token != self.end])


class Json:
    """A `tokenizer.json` of the tokenizers library."""

    def __init__(self, path: Path):
        import tokenizers  # noqa: PLC0415 - an extra

        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(path.read_text())
        except Exception as error:  # the library raises no narrower one
            raise SettingError("tokenizer", str(path), f"it must be a tokenizer.json; {error}") from None
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        ends = [self._tokenizer.token_to_id(name) for name in ENDS]
        self.end = next((end for end in ends if end is not None), -1)
        if self.end < 0:
            raise SettingError("tokenizer", str(path), f"it must have a token that ends a text: {', '.join(ENDS)}")
        self.vocab_size = max(self._tokenizer.get_vocab().values()) + 1
        self.digest = hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [each.ids for each in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)


class HuggingFace:
    """The tokeniser of a model of transformers, from a folder or the hub."""

    def __init__(self, name: str):
        import transformers  # noqa: PLC0415 - an extra, and slow to import

        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name)
        except Exception as error:  # of the hub, of a file, of a library that a tokeniser needs
            reason = str(error).strip().partition("\n")[0]
            expected = "it must be bytes, a path to a tokenizer.json or .tiktoken file, or a tokeniser of transformers"
            raise SettingError("tokenizer", name, f"{expected}; {reason}") from None
        if self._tokenizer.eos_token_id is None:
            raise SettingError("tokenizer", name, "it must have a token that ends a text (eos_token)")
        self.end = self._tokenizer.eos_token_id
        vocabulary = self._tokenizer.get_vocab()
        self.vocab_size = max(vocabulary.values()) + 1
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        content = json.dumps(vocabulary, sort_keys=True) if backend is None else backend.to_str()
        self.digest = hashlib.sha256(content.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
        )["input_ids"]

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)


def load_tokenizer(name: str) -> Tokenizer:
    """The tokeniser of a name.

    **Arguments:** `name`: `bytes`; a path to a `tokenizer.json` of the tokenizers library, or to a `.tiktoken` file,
    which gets GPT-2's pattern and an end token; or a folder or hub name for transformers.
    **Raises** `SettingError` for `tokenizer` where there is no such thing, or the library that it needs is missing.
    """
    if name == "bytes":
        return Bytes()
    path = Path(name).expanduser()
    suffix = path.suffix if path.suffix in (".json", ".tiktoken") else ""
    library = {".json": "tokenizers", ".tiktoken": "tiktoken", "": "transformers"}[suffix]
    if importlib.util.find_spec(library) is None:
        raise SettingError("tokenizer", name, f"it needs {library}: pip install 'recallbench[recall]'")
    if suffix and not path.is_file():
        raise SettingError("tokenizer", name, "there is no such file")
    if suffix:
        return Json(path) if suffix == ".json" else Tiktoken(path)
    return HuggingFace(str(path) if path.is_dir() else name)


def train_bpe(texts: Iterable[str], vocab_size: int, path: Path) -> Tokenizer:
    """A byte-level BPE of the texts, saved at `path` as a `tokenizer.json`.

    Its tokens are every byte, merges in the order in which they were found, and `END`; where the texts hold too few
    pairs, fewer than `vocab_size` in all. **Raises** `SettingError` where the size is too small.
    Source: Sennrich et al. 2016, arXiv 1508.07909; over bytes, Radford et al. 2019, section 2.2.
    """
    if vocab_size <= 256:
        raise SettingError("vocab_size", vocab_size, "it must be at least 257, each byte and the end of a document")
    if importlib.util.find_spec("tokenizers") is None:
        raise SettingError("tokenizer", str(path), "it needs tokenizers: pip install 'recallbench[recall]'")
    import tokenizers  # noqa: PLC0415 - an extra
    from tokenizers import decoders, models, pre_tokenizers, trainers  # noqa: PLC0415

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, tokenizer.to_str())
    return Json(path)
