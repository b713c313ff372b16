"""A corpus: documents, tokenised once into shards that any number of runs read.

<folder>/<settings>/manifest.json    what is in the shards, renewed after each: one that is killed goes on from there
<folder>/<settings>/00000.npy        tokens, each document followed by the end token
<folder>/<settings>/tokenizer.json   of a tokeniser that is trained on the corpus

The training documents come first, then those of validation. What names a corpus in a run's identity is its digest: of
its text, its tokeniser and where training ends, whatever the files are called.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from pydantic import BaseModel, ConfigDict, PositiveInt
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from models.settings import SettingError
from recallbench import ranks
from recallbench.claim import take
from recallbench.disk import write_atomically, writing
from recallbench.text.associative_recall import frequent_bigrams
from recallbench.text.documents import Dataset, Piece, Source, text_files
from recallbench.text.shards import Stream, token_type, write_shard
from recallbench.text.tokenizer import Tokenizer, load_tokenizer, train_bpe

SHARD = 2**24
"""Tokens after which a shard is written: some seconds of work."""

BATCH = 2**22
"""Characters that are tokenised at a time."""

BPE_SAMPLE = 100 * 2**20
"""Characters from the start of the corpus that a tokeniser is trained on."""

PERIOD = 0.5
"""Seconds between two looks at what another process prepares."""


class DataConfig(BaseModel):
    """What every corpus has.

    `field`: of a document, its text. `documents`: the first so many, those of a validation source of its own aside.
    `validation_fraction`: of the documents, from the end, where validation has none. `tokenizer`: as `load_tokenizer`,
    or `bpe` for one that is trained on the corpus, of `vocab_size` tokens. `folder`: where shards are kept.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    path: str
    field: str = "text"
    documents: PositiveInt | None = None
    validation_fraction: Annotated[float, Gt(0), Lt(1)] = 0.01
    tokenizer: str = "bpe"
    vocab_size: Annotated[int, Ge(257)] = 32768
    folder: str = "corpora"


class TextData(DataConfig):
    """Files: `path` and `validation_path` are each a path or a pattern; a file in both is one of validation."""

    name: Literal["text"] = "text"
    validation_path: str | None = None

    def sources(self) -> tuple[list[Source], list[Source]]:
        """Those of training and of validation. **Raises** `SettingError`."""
        where = self.validation_path
        validation = [] if where is None else text_files("data.validation_path", where, self.field)
        held_out = {source.name for source in validation}
        train = [s for s in text_files("data.path", self.path, self.field) if s.name not in held_out]
        if not train:
            raise SettingError("data.path", self.path, "all of its files are among those of data.validation_path")
        return train, validation


class HuggingFaceData(DataConfig):
    """A dataset of the hub, or a folder of such a form, by the name `path`."""

    name: Literal["huggingface"] = "huggingface"
    subset: str | None = None
    split: str = "train"
    validation_split: str | None = None
    revision: str | None = None

    def sources(self) -> tuple[list[Source], list[Source]]:
        """Those of training and of validation. **Raises** `SettingError`."""

        def split(name: str) -> Source:
            return Dataset("data.path", self.path, self.subset, name, self.revision, self.field)

        return [split(self.split)], [] if self.validation_split is None else [split(self.validation_split)]


DATA: dict[str, type[TextData | HuggingFaceData]] = {"text": TextData, "huggingface": HuggingFaceData}


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A corpus that is ready."""

    folder: Path
    digest: str
    tokenizer: str  # what `load_tokenizer` takes
    vocab_size: int
    end: int
    documents: int
    train_documents: int
    tokens: int
    train_tokens: int
    shards: tuple[int, ...]  # tokens of each

    @property
    def train(self) -> Stream:
        return Stream(self._paths, 0, self.train_tokens)

    @property
    def validation(self) -> Stream:
        return Stream(self._paths, self.train_tokens, self.tokens)

    def frequent_bigrams(self, threshold: int) -> Tensor:
        """The codes of bigrams that training holds more often, sorted; counted once and kept beside the shards."""
        path = self.folder / f"bigrams-{self.digest}-{threshold}.npy"
        if not path.exists():
            write_shard(path, frequent_bigrams(self.train, self.vocab_size, threshold).numpy())
        return torch.from_numpy(np.load(path))

    @property
    def _paths(self) -> list[Path]:
        return [_shard(self.folder, i) for i in range(len(self.shards))]


@dataclasses.dataclass(frozen=True)
class Progressed:
    """How far the tokenising of a corpus has come; whole pieces, in the order of the sources."""

    source: int = 0
    pieces: int = 0  # of that source
    documents: int = 0
    tokens: int = 0
    train: tuple[int, int] | None = None  # documents and tokens before the first of validation
    text: str = ""  # digest of all pieces
    before: str = ""  # that digest where the source begins
    shards: tuple[int, ...] = ()

    def after(self, source: int, piece: Piece, count: int, first_of_validation: int) -> "Progressed":
        """One piece of so many tokens on."""
        new = self if source == self.source else dataclasses.replace(self, source=source, pieces=0, before=self.text)
        train = new.train
        if train is None and source >= first_of_validation:
            train = new.documents, new.tokens
        return dataclasses.replace(
            new,
            pieces=new.pieces + 1,
            documents=new.documents + piece.ends,
            tokens=new.tokens + count,
            train=train,
            text=_chain(new.text, piece),
        )


def prepare(data: TextData | HuggingFaceData) -> Corpus:
    """The corpus that settings describe, tokenised where it is not yet, with a bar.

    What another live process is preparing is waited for.
    **Raises** `SettingError` for what cannot be read, after keeping what could; `DiskTrouble`.
    """
    train, validation = data.sources()
    settings = data.model_dump(mode="json", exclude={"folder"})
    folder = Path(data.folder) / hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    # What JSON makes of it, to compare it with what was written.
    stamps = json.loads(json.dumps([_stamp(data.tokenizer), *(s.stamp() for s in (*train, *validation))]))
    waiting = False
    while (corpus := _ready(folder, stamps)) is None:
        claim = take(folder)
        if claim is None:
            if not waiting:
                Console(stderr=True, quiet=ranks.rank() > 0).print(
                    f"waiting for the process that prepares {folder}", highlight=False
                )
            waiting = True
            time.sleep(PERIOD)
            continue
        try:
            if _ready(folder, stamps) is None:
                _Preparation(data, folder, train, validation, stamps).run()
            claim.finish()
        finally:
            claim.release()
    return corpus


class _Preparation:
    """The tokenising of a corpus by the process that has claimed its folder."""

    def __init__(
        self,
        data: TextData | HuggingFaceData,
        folder: Path,
        train: Sequence[Source],
        validation: Sequence[Source],
        stamps: list[Any],
    ):
        self.data, self.folder, self.stamps = data, folder, stamps
        self.sources, self.first_of_validation = [*train, *validation], len(train)
        self.done: tuple[Progressed, list[np.ndarray]] = Progressed(), []  # what no shard has yet

    def run(self) -> None:
        """Go on from the last shard, or start; to the end."""
        sizes = [source.size for source in self.sources]
        known = [size for size in sizes if size is not None]
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            self.progress = progress
            start = self._resumed()
            tokenizer = self._tokenizer()
            total = sum(known) if len(known) == len(sizes) else None
            self.bar = progress.add_task("tokenising", total=total)
            try:
                self._tokenise(tokenizer, start)
            finally:
                self._write_shard()  # also of what came before something went wrong
            self._finish(tokenizer)

    def _resumed(self) -> Progressed:
        """How far an earlier process has come, unless what it read has changed since: then the start."""
        manifest = _manifest(self.folder)
        if manifest is not None and not manifest["complete"]:
            found = _progressed(manifest["progress"])
            unchanged = manifest["stamps"][: 1 + found.source] == self.stamps[: 1 + found.source]
            if unchanged and self._is_as_read(found):
                return found
        with writing(self.folder):
            for path in (self.folder / "tokenizer.json", *self.folder.glob("*.npy")):
                path.unlink(missing_ok=True)
        self._write_manifest(Progressed())
        return Progressed()

    def _is_as_read(self, found: Progressed) -> bool:
        """Whether the pieces of the source in the middle of which it ended are the same still."""
        text, count = found.before, 0
        if found.pieces:
            for piece in self.sources[found.source].pieces(lambda _: None):
                text, count = _chain(text, piece), count + 1
                if count == found.pieces:
                    break
        return text == found.text and count == found.pieces

    def _tokenizer(self) -> Tokenizer:
        if self.data.tokenizer != "bpe":
            return load_tokenizer(self.data.tokenizer)
        path = self.folder / "tokenizer.json"
        if not path.exists():
            bar = self.progress.add_task("training a tokeniser", total=None)
            tokenizer = train_bpe(self._sample(bar), self.data.vocab_size, path)
            self.progress.remove_task(bar)
            return tokenizer
        return load_tokenizer(str(path))

    def _sample(self, bar: Any) -> Iterator[str]:
        size = 0
        for source in self.sources[: self.first_of_validation]:
            for piece in source.pieces(lambda count: self.progress.advance(bar, count)):
                yield _clean(piece.text)
                size += len(piece.text)
                if size >= BPE_SAMPLE:
                    return

    def _tokenise(self, tokenizer: Tokenizer, start: Progressed) -> None:
        self.done = start, []
        dtype, end = token_type(tokenizer.vocab_size), [tokenizer.end]
        written = start.tokens
        for batch in _batches(self._pieces(start)):
            progressed, pending = self.done
            encoded = tokenizer.encode_batch([_clean(piece.text) for _, piece in batch])
            arrays = []
            for (source, piece), tokens in zip(batch, encoded, strict=True):
                array = np.array(tokens + end if piece.ends else tokens, dtype)
                progressed = progressed.after(source, piece, len(array), self.first_of_validation)
                arrays.append(array)
            self.done = progressed, [*pending, *arrays]
            if progressed.tokens - written >= SHARD:
                self._write_shard()
                written = progressed.tokens

    def _pieces(self, start: Progressed) -> Iterator[tuple[int, Piece]]:
        """What is left to do, each piece with the number of its source."""
        documents = start.documents
        for i, source in enumerate(self.sources):
            if i < start.source:
                self.progress.advance(self.bar, source.size or 0)
                continue
            skip = start.pieces if i == start.source else 0
            for j, piece in enumerate(source.pieces(lambda count: self.progress.advance(self.bar, count))):
                if j < skip:
                    continue
                if i < self.first_of_validation and documents == self.data.documents:
                    break
                documents += piece.ends
                yield i, piece

    def _write_shard(self) -> None:
        progressed, pending = self.done
        tokens = np.concatenate(pending) if pending else ()
        if len(tokens):
            write_shard(_shard(self.folder, len(progressed.shards)), np.asarray(tokens))
            progressed = dataclasses.replace(progressed, shards=(*progressed.shards, len(tokens)))
            self._write_manifest(progressed)
            self.done = progressed, []

    def _finish(self, tokenizer: Tokenizer) -> None:
        progressed, _ = self.done
        if progressed.train is None:
            progressed = dataclasses.replace(progressed, train=self._tail(progressed, tokenizer.end))
        documents, train_tokens = progressed.train or (0, 0)
        content = [progressed.text, tokenizer.digest, documents]
        corpus = {
            "digest": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16],
            "tokenizer": str(self.folder / "tokenizer.json") if self.data.tokenizer == "bpe" else self.data.tokenizer,
            "vocab_size": tokenizer.vocab_size,
            "end": tokenizer.end,
            "documents": progressed.documents,
            "train_documents": documents,
            "tokens": progressed.tokens,
            "train_tokens": train_tokens,
        }
        self._write_manifest(progressed, corpus)

    def _tail(self, progressed: Progressed, end: int) -> tuple[int, int]:
        """Documents and tokens before the last `validation_fraction` of the documents."""
        fraction = self.data.validation_fraction
        if progressed.documents < 2:
            expected = "the corpus has a single document, and none to validate on; give validation a source of its own"
            raise SettingError("data.validation_fraction", fraction, expected)
        held_out = min(max(1, round(fraction * progressed.documents)), progressed.documents - 1)
        at, left = progressed.tokens, held_out + 1  # behind the end of the last document of training
        for i in reversed(range(len(progressed.shards))):
            at -= progressed.shards[i]
            ends = np.flatnonzero(np.load(_shard(self.folder, i), mmap_mode="r") == end)
            if len(ends) >= left:
                return progressed.documents - held_out, at + int(ends[-left]) + 1
            left -= len(ends)
        raise AssertionError("every document has its end")

    def _write_manifest(self, progressed: Progressed, corpus: dict[str, Any] | None = None) -> None:
        content = {
            "complete": corpus is not None,
            "corpus": corpus,
            "stamps": self.stamps,
            "progress": dataclasses.asdict(progressed),
        }
        write_atomically(self.folder / "manifest.json", json.dumps(content, indent=1))


def _ready(folder: Path, stamps: list[Any]) -> Corpus | None:
    """The corpus, if it is complete and nobody has changed its sources since."""
    manifest = _manifest(folder)
    if manifest is None or not manifest["complete"] or manifest["stamps"] != stamps:
        return None
    return Corpus(folder=folder, shards=tuple(manifest["progress"]["shards"]), **manifest["corpus"])


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "manifest.json").read_text())
    except FileNotFoundError:
        return None


def _progressed(written: dict[str, Any]) -> Progressed:
    train = written["train"]
    return Progressed(**{**written, "train": train and tuple(train), "shards": tuple(written["shards"])})


def _stamp(tokenizer: str) -> list[Any]:
    path = Path(tokenizer).expanduser()
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else []


def _batches(pieces: Iterable[tuple[int, Piece]]) -> Iterator[list[tuple[int, Piece]]]:
    batch, size = [], 0
    for each in pieces:
        batch.append(each)
        size += len(each[1].text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _chain(digest: str, piece: Piece) -> str:
    """The digest of all pieces up to this one from that of those before it, so that it can go on from any."""
    content = digest.encode() + (b"1" if piece.ends else b"0") + piece.text.encode(errors="surrogatepass")
    return hashlib.sha256(content).hexdigest()


def _clean(text: str) -> str:
    """Without lone surrogates, which JSON can hold and UTF-8 cannot."""
    return text.encode(errors="replace").decode()


def _shard(folder: Path, i: int) -> Path:
    return folder / f"{i:05}.npy"
