"""Prompts made of SQuAD's passages: what stands before an answer, for the answer to complete."""

import json
import re

import pytest

from recallbench.recall.build_completions import main
from recallbench.recall.harness import load_tasks

PASSAGE = (
    "Rivers rise. The longest of the land is the Ob. Dr. No saw it in 1962, and in 1963\nA ferry goes to Salekhard."
)


def squad(tmp_path, *answers: str):
    asked = [
        {"question": "?", "answers": [{"text": a, "answer_start": PASSAGE.index(a)}] if a else []} for a in answers
    ]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": PASSAGE, "qas": asked}]}]}))
    return str(path)


def test_a_prompt_ends_in_what_stands_before_the_answer_in_its_sentence(tmp_path):
    out = tmp_path / "squad"
    main([squad(tmp_path, "the Ob", "the Ob", "1963", "Rivers", "Salekhard", ""), "--out", str(out)])
    documents = load_tasks(["squad_completion"], str(out), None, 2048)["squad_completion"].dataset["validation"]
    found = {each["value"]: each["text"] for each in documents}
    assert len(documents) == len(found)  # a place asked for twice is one prompt
    assert found == {
        "the Ob": f"{PASSAGE}\nThe longest of the land is",
        "1963": f"{PASSAGE}\nNo saw it in 1962, and in",
        "Salekhard": f"{PASSAGE}\nA ferry goes to",
    }
    for value, prompt in found.items():
        passage, beginning = prompt.rsplit("\n", 1)
        assert re.search(re.escape(beginning) + r"\s+" + re.escape(value), passage)


def test_what_cannot_be_made_is_said_in_a_sentence(tmp_path, capsys):
    there, broken = tmp_path / "there", tmp_path / "broken.json"
    there.mkdir()
    broken.write_text('{"data": [{}]}')
    for arguments, said in (
        ([squad(tmp_path, "1963"), "--out", str(there)], "it exists already"),
        ([str(broken), "--out", str(tmp_path / "new")], "it must be SQuAD's JSON"),
        ([str(tmp_path / "missing.json"), "--out", str(tmp_path / "new")], "it must be SQuAD's JSON"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert said in capsys.readouterr().err
    none = squad(tmp_path, "Rivers", "")
    with pytest.raises(SystemExit):
        main([none, "--out", str(tmp_path / "new")])
    assert "4 words of its sentence before it" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
