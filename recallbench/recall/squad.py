"""SQuAD's own JSON (Rajpurkar et al. 2018, arXiv 1806.03822): passages, questions, and where the answer stands."""

import json
from pathlib import Path
from typing import NamedTuple

from models.settings import SettingError


class Answered(NamedTuple):
    """A question that its passage answers, from character `start` on."""

    passage: str
    question: str
    answer: str
    start: int


def read_squad(path: Path) -> list[Answered]:
    """The answerable questions of a file, each with the first of its answers.

    **Raises** `SettingError` where it is not of that form.
    """
    try:
        return [
            Answered(paragraph["context"], asked["question"].strip(), first["text"], first["answer_start"])
            for article in json.loads(path.read_text(encoding="utf-8"))["data"]
            for paragraph in article["paragraphs"]
            for asked in paragraph["qas"]
            for first in asked["answers"][:1]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        expected = f"it must be SQuAD's JSON: data, paragraphs, qas, answers; {type(error).__name__}: {error}"
        raise SettingError("INPUT", str(path), expected) from None
