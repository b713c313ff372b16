"""`python -m recallbench.recall.build_completions INPUT --out FOLDER`: data for task=squad_completion, offline.

The data set of that name (Arora et al. 2024, arXiv 2402.18668) has SQuAD's questions rewritten as sentences to
complete. Here the sentence is the passage's own: behind the passage stands again the beginning of the sentence that the
answer is in, and the answer completes it. That is easier, being recall of what was read word for word.
"""

import argparse
import json
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from models.settings import SettingError
from recallbench.recall.squad import read_squad

SEED = 0
"""Of the order of what is written, so that the first n are a sample."""

FEWEST = 4
"""Words of a beginning: with fewer, several sentences of a passage may begin so."""


def completions(path: Path) -> list[tuple[str, str]]:
    """Prompt and answer for each place of SQuAD's JSON that is an answer, shuffled.

    **Raises** `SettingError` where it is something else, or nothing in it can be asked for.
    """
    found: list[tuple[str, str]] = []
    for passage, start, answer in sorted({(asked.passage, asked.start, asked.answer) for asked in read_squad(path)}):
        beginning = re.split(r"(?<=[.!?])\s+|\n", passage[:start])[-1]
        if len(beginning.split()) >= FEWEST:
            found.append((f"{passage.strip()}\n{beginning.strip()}", answer.strip()))
    if not found:
        raise SettingError("INPUT", str(path), f"no answer in it has {FEWEST} words of its sentence before it")
    random.Random(SEED).shuffle(found)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m recallbench.recall.build_completions", description=__doc__)
    parser.add_argument("input", type=Path, metavar="INPUT", help="SQuAD's JSON, such as dev-v2.0.json")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for task.data_dir, to be made")
    given = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        found = completions(given.input)
        if given.out.exists():
            raise SettingError("--out", str(given.out), "it exists already; choose another name")
    except SettingError as error:
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    given.out.mkdir(parents=True)
    lines = [json.dumps({"text": text, "value": value}, ensure_ascii=False) + "\n" for text, value in found]
    (given.out / "validation.jsonl").write_text("".join(lines), encoding="utf-8")
    console.print(f"{len(found)} prompts in {given.out}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
