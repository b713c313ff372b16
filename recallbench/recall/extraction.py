"""Values out of documents, as the study of Based asks for them on FDA: "{chunk}\\n{key}:", contained or not.

Source: Arora et al. 2024, arXiv 2402.18668, section 6.1 and its appendix on tasks; Arora et al. 2023, arXiv 2304.09433.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from recallbench.recall.documents import Document, occurrences
from recallbench.recall.proportion import proportion
from recallbench.recall.reader import Reader
from recallbench.text.tokenizer import Tokenizer

UNTIL = "\n"
"""A value is one line."""

SLACK = 8
"""Tokens by which a chunk stays below the room there is, since a text cut elsewhere may have a token or two more."""


class Question(NamedTuple):
    """What is asked of a chunk."""

    prompt: str
    value: str
    distance: int  # tokens from the last occurrence of the value in the chunk to the cue
    length: int  # tokens of the whole document


def extract(
    reader: Reader, documents: Sequence[Document], generate: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Accuracy over all documents, then by distance and by length in tokens, each in ranges that double.

    A value that does not fit into a chunk is not asked for; `skipped` counts those.
    """
    asked = [ask(document, reader.tokenizer, reader.room(generate)) for document in documents]
    questions = [question for question in asked if question]
    if not questions:
        raise ValueError("no document's value fits into the context")
    said = reader.generate([question.prompt for question in questions], generate, [UNTIL])
    right = [bool(occurrences(question.value, text)) for question, text in zip(questions, said, strict=True)]
    slices = [
        {axis: least, f"{axis}_below": 2 * least if least else 1, **proportion([right[i] for i in members])}
        for axis in ("distance", "length")
        for least, members in doubling([getattr(question, axis) for question in questions])
    ]
    return {**proportion(right), "skipped": len(asked) - len(questions)}, slices


def ask(document: Document, tokenizer: Tokenizer, room: int) -> Question | None:
    """The prompt of a document for a room of so many tokens; None where its value does not fit."""
    value, cue = document.value.strip(), f"\n{document.key.strip().rstrip(':')}:"
    text = document.text.strip()
    tokens = tokenizer.encode(text)
    most = room - len(tokenizer.encode(cue)) - SLACK
    chunk = text if len(tokens) <= most else _chunk(text, tokens, value, tokenizer, most)
    found = occurrences(value, chunk)
    if not found:
        return None
    return Question(chunk + cue, value, len(tokenizer.encode(chunk[found[-1][1] :])), len(tokens))


def _chunk(text: str, tokens: Sequence[int], value: str, tokenizer: Tokenizer, most: int) -> str:
    """Of the chunks of `most` tokens, the one in which the value first stands; where it is cut there, a later start."""
    begin, end = occurrences(value, text)[0]
    first = len(tokenizer.encode(text[:begin]))
    last = len(tokenizer.encode(text[:end])) + 1  # a token may reach beyond the value
    if last - first > most:
        return ""
    start = max(first // most * most, last - most)
    return tokenizer.decode(tokens[start : start + most]).strip()


def doubling(numbers: Sequence[int]) -> Iterable[tuple[int, list[int]]]:
    """Indices by the ranges 0, 1, 2 to 3, 4 to 7, ..., each named by its least number; empty ones are left out."""
    members: dict[int, list[int]] = {}
    for index, number in enumerate(numbers):
        members.setdefault(2 ** (number.bit_length() - 1) if number else 0, []).append(index)
    return sorted(members.items())
