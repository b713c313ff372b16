"""`python -m recallbench.recall.build_documents INPUT... --out FILE.jsonl`: documents to ask of, for task=extraction.

From Markdown come the scalars of its front matter and the rows of its two-column tables, from SQuAD its questions.
"""

import argparse
import glob
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from models.settings import SettingError
from recallbench.recall.documents import Document, occurrences, write_documents
from recallbench.recall.squad import read_squad
from recallbench.text.documents import text_files

LONGEST = 100
"""Characters of a value: what a few dozen tokens can say."""

SEED = 0
"""Of the order of what is written, so that the first n are a sample."""


def markdown(text: str) -> Iterator[Document]:
    """A document for each key with one value: `key: value` of the front matter, `| key | value |` of a table."""
    values: dict[str, set[str]] = {}
    for key, value in [*_front_matter(text), *_two_columns(text)]:
        values.setdefault(key, set()).add(value)
    for key, several in values.items():
        value = several.pop()
        if key and value and not several and len(value) <= LONGEST and "\n" not in value and occurrences(value, text):
            yield Document(text=text, key=key, value=value)


def documents(path: Path) -> Iterator[Document]:
    """What a file holds: Markdown (.md), Markdown as `text` of JSON lines (.jsonl, also packed), or SQuAD (.json).

    **Raises** `SettingError` where it holds something else.
    """
    if path.suffix == ".json":
        for asked in read_squad(path):
            yield Document(text=asked.passage, key=f"Question: {asked.question}\nAnswer", value=asked.answer)
    elif path.suffix == ".md":
        try:
            yield from markdown(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError("INPUT", str(path), f"it must be Markdown in UTF-8; {error}") from None
    else:
        for source in text_files("INPUT", str(path), "text"):
            for piece in source.pieces(lambda read: None):
                yield from markdown(piece.text)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m recallbench.recall.build_documents", description=__doc__)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="a file, or a pattern such as 'docs/**/*.md'")
    parser.add_argument("--out", type=Path, required=True, help="the .jsonl to write")
    given = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        found: list[Document] = []
        for pattern in given.inputs:
            paths = sorted(glob.glob(pattern, recursive=True))
            if not paths:
                raise SettingError("INPUT", pattern, "there is no such file")
            found += [document for path in paths for document in documents(Path(path))]
        if not found:
            raise SettingError("INPUT", " ".join(given.inputs), "no front matter, two-column table or answer is in it")
        if given.out.exists():
            raise SettingError("--out", str(given.out), "it exists already; choose another name")
        random.Random(SEED).shuffle(found)
        write_documents(given.out, found)
    except SettingError as error:
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    console.print(f"{len(found)} documents in {given.out}", highlight=False, soft_wrap=True)


def _front_matter(text: str) -> Iterator[tuple[str, str]]:
    """Scalars between the two lines of dashes that a page begins with."""
    block = re.match(r"---\s*\n(.*?)\n---\s*\n", text, re.DOTALL)
    for line in block[1].splitlines() if block else ():
        if found := re.fullmatch(r"([\w.-]+):[ \t]+(\S.*?)\s*", line):
            yield found[1], found[2].strip("'\"")


def _two_columns(text: str) -> Iterator[tuple[str, str]]:
    """The rows of tables of two columns, without their markup; header and ruler are no rows."""
    inside = False
    for line, following in zip(lines := text.splitlines(), [*lines[1:], ""], strict=True):
        cells = _cells(line)
        if cells is None:
            inside = False
        elif _is_ruler(cells):
            inside = True
        elif inside and not _is_ruler(_cells(following) or ()):
            key, value = map(_without_markup, cells)
            yield key, value


def _cells(line: str) -> tuple[str, str] | None:
    """The cells of a table's line, where they are two."""
    found = re.fullmatch(r"\s*\|((?:[^|\\]|\\.)*)\|((?:[^|\\]|\\.)*)\|\s*", line)
    return (found[1].strip(), found[2].strip()) if found else None


def _is_ruler(cells: Sequence[str]) -> bool:
    return bool(cells) and all(re.fullmatch(r":?-+:?", cell) for cell in cells)


def _without_markup(cell: str) -> str:
    """The first line of a cell, a link by its text, without tags and without emphasis around it."""
    first = re.split(r"<br\s*/?>", cell)[0]
    linked = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", first)
    return re.sub(r"<[^>]*>", "", linked).strip(" *_`")


if __name__ == "__main__":
    main()
