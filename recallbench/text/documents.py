"""Documents from files or a dataset, in an order that never changes, in pieces that fit into memory.

A piece is a document, or some of the lines of a long file that is one document.
"""

import glob
import importlib.util
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from models.settings import SettingError

PIECE = 2**20
"""Bytes of a file that is one document, after which a piece ends with the line."""

READ = 2**20
"""Bytes that are read of a file at a time."""

FORMATS = (".txt", ".md", ".jsonl")
PACKED: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(31),
    ".xz": lzma.LZMADecompressor,
    ".zst": lambda: _zstandard().ZstdDecompressor().decompressobj(),
}
"""What unpacks a stream of a file with this suffix. Each tells where its stream ends."""

AGAIN = "mend it and run the same command again, which goes on from there"


class Piece(NamedTuple):
    """Text, and whether a document ends with it."""

    text: str
    ends: bool


class Source(Protocol):
    """Where documents come from."""

    name: str
    size: int | None
    """Bytes as they are stored, where that is known."""

    def stamp(self) -> list[Any]:
        """Equal as long as nobody has changed it."""
        ...

    def pieces(self, read: Callable[[int], None]) -> Iterator[Piece]:
        """From the start; `read` is told of bytes, as they are stored, that have been read.

        **Raises** `SettingError` naming the file and the line where it does not hold what it should.
        """
        ...


class TextFile:
    """A `.txt`, `.md` or `.jsonl` file, as it is or packed by gzip, xz or zstandard."""

    def __init__(self, setting: str, path: Path, field: str):
        self.setting, self.path, self.field = setting, path, field
        self.name = str(path)
        self.size: int | None = path.stat().st_size
        self.packed = path.suffix if path.suffix in PACKED else ""
        self.format = Path(path.name.removesuffix(self.packed)).suffix
        if self.format not in FORMATS:
            raise self._wrong(f"it must end in {', '.join(FORMATS)}, also with {', '.join(PACKED)} behind it")
        if self.packed == ".zst" and importlib.util.find_spec("zstandard") is None:
            raise self._wrong("it needs zstandard: pip install 'recallbench[recall]'")

    def stamp(self) -> list[Any]:
        status = self.path.stat()
        return [self.name, status.st_size, status.st_mtime_ns]

    def pieces(self, read: Callable[[int], None]) -> Iterator[Piece]:
        lines = _lines(self._unpacked(read))
        empty = True
        for piece in self._documents(lines) if self.format == ".jsonl" else self._parts(lines):
            empty = False
            yield piece
        if empty:
            raise self._wrong(f"it is empty; remove it or {AGAIN}")

    def _documents(self, lines: Iterable[bytes]) -> Iterator[Piece]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            text = self._decoded(line, number)
            try:
                entry = json.loads(text)
            except ValueError as error:
                raise self._wrong(f"line {number} is not JSON ({error}); {AGAIN}") from None
            value = entry.get(self.field) if isinstance(entry, dict) else None
            if not isinstance(value, str):
                raise self._wrong(f"line {number} has no text in a field {self.field!r} (data.field)")
            yield Piece(value, ends=True)

    def _parts(self, lines: Iterable[bytes]) -> Iterator[Piece]:
        number, size, part = 1, 0, []
        for line in lines:
            if size > PIECE:
                yield Piece(self._decoded(b"".join(part), number), ends=False)
                number, size, part = number + len(part), 0, []
            part.append(line)
            size += len(line)
        if part:
            yield Piece(self._decoded(b"".join(part), number), ends=True)

    def _decoded(self, content: bytes, number: int) -> str:
        """**Arguments:** `number`: of the first line of it."""
        try:
            return content.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            number += content.count(b"\n", 0, error.start)
            raise self._wrong(f"line {number} is not UTF-8 ({error.reason}); {AGAIN}") from None

    def _unpacked(self, read: Callable[[int], None]) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            chunks = iter(lambda: file.read(READ), b"")
            unpack, begun = None, False
            for chunk in chunks:
                read(len(chunk))
                if not self.packed:
                    yield chunk
                    continue
                rest, begun = chunk, True
                while rest:  # several streams may follow one another in a file, with zeros between them
                    unpack = unpack or PACKED[self.packed]()
                    try:
                        yield unpack.decompress(rest)
                    except Exception as error:  # each library has exceptions of its own
                        raise self._wrong(f"it cannot be unpacked ({error}); {AGAIN}") from None
                    rest = b""
                    if unpack.eof:
                        rest, unpack = unpack.unused_data.lstrip(b"\0"), None
            if begun and unpack is not None:
                raise self._wrong(f"it ends in the middle of its archive; {AGAIN}")

    def _wrong(self, expected: str) -> SettingError:
        return SettingError(self.setting, self.name, expected)


class Dataset:
    """A split of a dataset of the hub, or of a folder of such a form, read as a stream."""

    size: int | None = None

    def __init__(self, setting: str, name: str, subset: str | None, split: str, revision: str | None, field: str):
        self.setting, self.name, self.field = setting, name, field
        self.arguments = {"path": name, "name": subset, "split": split, "revision": revision}
        if importlib.util.find_spec("datasets") is None:
            raise SettingError(setting, name, "it needs datasets: pip install 'recallbench[recall]'")

    def stamp(self) -> list[Any]:
        folder = Path(self.name)
        files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
        return [self.arguments, *([str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files)]

    def pieces(self, read: Callable[[int], None]) -> Iterator[Piece]:
        import datasets  # noqa: PLC0415 - an extra, and slow to import

        try:
            rows: Iterable[Any] = datasets.load_dataset(**self.arguments, streaming=True)
            for number, row in enumerate(rows):
                if not isinstance(row.get(self.field), str):
                    known = ", ".join(row)
                    raise SettingError("data.field", self.field, f"row {number} of {self.name} has {known}")
                yield Piece(row[self.field], ends=True)
        except SettingError:
            raise
        except Exception as error:  # of the hub, the network, a format
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise SettingError(self.setting, self.name, f"it cannot be read ({reason}); {AGAIN}") from None


def text_files(setting: str, pattern: str, field: str) -> list[Source]:
    """The files of a glob in the order of their paths. **Raises** `SettingError` where there are none."""
    found = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))
    files: list[Source] = [TextFile(setting, path, field) for path in map(Path, found) if path.is_file()]
    if not files:
        raise SettingError(
            setting, pattern, "there is no such file; it may be a path or a pattern such as 'corpus/*.txt'"
        )
    return files


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines with their ends, however the chunks were cut."""
    rest: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        rest.append(first)
        if others:
            yield b"".join(rest) + b"\n"
            yield from (line + b"\n" for line in itertools.islice(others, len(others) - 1))
            rest = [others[-1]]
    if last := b"".join(rest):
        yield last


def _zstandard() -> Any:
    import zstandard  # noqa: PLC0415 - an extra

    return zstandard
