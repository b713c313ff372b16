"""Extraction from documents: what is asked, how it is counted, and where documents come from."""

import json
import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from models.settings import SettingError
from recallbench.recall import build_documents
from recallbench.recall.documents import Document, read_documents, write_documents
from recallbench.recall.extraction import SLACK, ask, extract
from recallbench.recall.proportion import wilson
from recallbench.text.tokenizer import Bytes


@given(n=st.integers(1, 300), data=st.data())
def test_the_interval_is_wilsons(n, data):
    k = data.draw(st.integers(0, n))
    expected = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(before=st.text("xyz \n", max_size=150), after=st.text("xyz \n", max_size=150), room=st.integers(SLACK + 20, 150))
def test_the_chunk_that_is_asked_of_holds_the_value(before, after, room):
    document = Document(text=f"{before}Ü1{after}", key="number:", value="ü1")
    question = ask(document, Bytes(), room)
    assert question is not None
    chunk = question.prompt.removesuffix("\nnumber:")
    assert chunk in document.text
    assert len(question.prompt.encode()) <= room
    assert question.length == len(document.text.strip().encode())
    assert question.distance == len(chunk.partition("Ü1")[2].encode())
    if question.length + len("\nnumber:") + SLACK <= room:
        assert chunk == document.text.strip()


def test_a_value_longer_than_a_chunk_is_not_asked_for():
    assert ask(Document(text="a" * 80, key="k", value="a" * 70), Bytes(), 60) is None


class Near:
    """A reader that knows values which stand at most 40 bytes before the cue."""

    tokenizer = Bytes()

    def room(self, generated):
        return 1000

    def generate(self, prompts, count, until):
        assert until == ["\n"]
        return [f" it is {prompt[-40:].upper()}" for prompt in prompts]


def test_accuracy_is_told_by_distance_and_by_length():
    documents = [Document(text="value" + "." * n, key="k", value="Value") for n in (0, 3, 20, 31, 40, 100, 600)]
    metrics, slices = extract(Near(), [*documents, Document(text="v" * 999, key="k", value="v" * 998)], 48)  # pyright: ignore
    assert (metrics["accuracy"], metrics["examples"], metrics["skipped"]) == (4 / 7, 7, 1)
    assert (metrics["accuracy_low"], metrics["accuracy_high"]) == wilson(4, 7)
    by_distance = {s["distance"]: (s["accuracy"], s["examples"]) for s in slices if "distance" in s}
    assert by_distance == {0: (1, 1), 2: (1, 1), 16: (1, 2), 32: (0, 1), 64: (0, 1), 512: (0, 1)}
    assert {s["length"]: s["examples"] for s in slices if "length" in s} == {4: 1, 8: 1, 16: 1, 32: 2, 64: 1, 512: 1}


PAGE = """---
title: Copying a File
ms.date: '05/31/2018'
list: [a,
---

# Copying a File

| Requirement | Value |
|-------------|-------|
| **Minimum client** | Windows 2000 |
| [Header](a.md) | <dl><dt>Winbase.h</dt></dl> |
| DLL | [Kernel32.dll](x.md)<br/>Other.dll |
| twice | one |
| twice | two |
|  | empty |

| a | b | c |
|---|---|---|
| 1 | 2 | 3 |

| Left | Right |
|:--|--:|
| Size | 5 |
"""


def test_a_page_gives_its_front_matter_and_two_column_tables():
    found = {document.key: document.value for document in build_documents.markdown(PAGE)}
    assert found == {
        "title": "Copying a File",
        "ms.date": "05/31/2018",
        "list": "[a,",
        "Minimum client": "Windows 2000",
        "Header": "Winbase.h",
        "DLL": "Kernel32.dll",
        "Size": "5",
    }


def test_documents_are_built_from_pages_corpora_and_squad(tmp_path, capsys):
    (tmp_path / "page.md").write_text(PAGE)
    with lzma.open(tmp_path / "corpus.jsonl.xz", "wt") as file:
        file.write(json.dumps({"text": "---\ntitle: Other\n---\nOther text"}) + "\n")
    answers = {"answers": [{"text": "France", "answer_start": 0}]}
    asked = [{"question": "Where?", **answers}, {"question": "Who?", "answers": []}]
    squad = {"data": [{"paragraphs": [{"context": "France it is", "qas": asked}]}]}
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    out = tmp_path / "out.jsonl"
    inputs = [str(tmp_path / name) for name in ("*.md", "corpus.jsonl.xz", "squad.json")]
    build_documents.main([*inputs, "--out", str(out)])
    found, digest = read_documents(str(out))
    assert len(found) == 9
    assert Document(text="France it is", key="Question: Where?\nAnswer", value="France") in found
    assert digest == read_documents(str(out))[1]
    for arguments, said in (
        ([*inputs, "--out", str(out)], "exists already"),
        ([str(tmp_path / "none*.md"), "--out", str(tmp_path / "new")], "no such file"),
        ([str(out), "--out", str(tmp_path / "new")], None),
    ):
        capsys.readouterr()
        if said is None:  # its documents are pages, and pages it reads
            build_documents.main(arguments)
            continue
        with pytest.raises(SystemExit):
            build_documents.main(arguments)
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "a", "key": "b"}\n', "line 1 must be a JSON object"),
        ('\n{"text": "a b", "key": "k", "value": "c"}\n', "text of line 2 does not contain its value 'c'"),
        ("\n", "one document at the least"),
        (None, "No such file"),
    ],
)
def test_a_file_of_documents_is_refused_in_a_sentence(content, said, tmp_path):
    path = tmp_path / "documents.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingError, match=said):
        read_documents(str(path))


def test_what_is_written_is_read_again(tmp_path):
    documents = [Document(text="ä\u2028b", key="k", value="ä"), Document(text="1\n2", key="x", value="2")]
    write_documents(tmp_path / "d.jsonl", documents)
    assert read_documents(str(tmp_path / "d.jsonl"))[0] == documents
