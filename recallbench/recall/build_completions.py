"""`python -m recallbench.recall.build_completions SQUAD.json --out FOLDER`: data for task=squad_completion, offline.

The data set of that name (Arora et al. 2024, arXiv 2402.18668) has SQuAD's questions rewritten as sentences to
complete. Here the sentence is the passage's own: behind the passage stands again the beginning of the sentence that the
answer is in, and the answer completes it. That is easier, being recall of what was read word for word.
"""

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from models.settings import SettingError

SEED = 0
"""Of the order of what is written, so that the first n are a sample."""

FEWEST = 4
"""Words of a beginning: with fewer, several sentences of a passage may begin so."""


def completions(content: Any) -> Iterator[tuple[str, str]]:
    """Prompt and answer for each place of SQuAD's JSON (Rajpurkar et al. 2018, arXiv 1806.03822) that is an answer.

    **Raises** `KeyError` or `TypeError` where it is not of that form.
    """
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            passage = paragraph["context"]
            answers = [question["answers"][0] for question in paragraph["qas"] if question["answers"]]
            for start, answer in sorted({(answer["answer_start"], answer["text"]) for answer in answers}):
                beginning = re.split(r"(?<=[.!?])\s+|\n", passage[:start])[-1]
                if len(beginning.split()) >= FEWEST:
                    yield f"{passage.strip()}\n{beginning.strip()}", answer.strip()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m recallbench.recall.build_completions", description=__doc__)
    parser.add_argument("input", type=Path, metavar="SQUAD.json", help="such as dev-v2.0.json")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for task.data_dir, to be made")
    given = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        found = _read(given.input)
        if given.out.exists():
            raise SettingError("--out", str(given.out), "it exists already; choose another name")
    except SettingError as error:
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    random.Random(SEED).shuffle(found)
    given.out.mkdir(parents=True)
    lines = [json.dumps({"text": text, "value": value}, ensure_ascii=False) + "\n" for text, value in found]
    (given.out / "validation.jsonl").write_text("".join(lines), encoding="utf-8")
    console.print(f"{len(found)} prompts in {given.out}", highlight=False, soft_wrap=True)


def _read(path: Path) -> list[tuple[str, str]]:
    try:
        found = list(completions(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, KeyError, TypeError) as error:
        expected = f"it must be SQuAD's JSON: data, paragraphs, qas, answers; {type(error).__name__}: {error}"
        raise SettingError("SQUAD.json", str(path), expected) from None
    if not found:
        raise SettingError("SQUAD.json", str(path), f"no answer in it has {FEWEST} words of its sentence before it")
    return found


if __name__ == "__main__":
    main()
