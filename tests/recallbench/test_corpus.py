"""A corpus is its documents one after the other, however they are stored, cut up, and come by."""

import gzip
import json
import lzma
import os
import random

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from models.settings import SettingError
from recallbench.text import corpus as corpus_module
from recallbench.text import documents as documents_module
from recallbench.text.corpus import HuggingFaceData, TextData, prepare
from recallbench.text.shards import Order, Stream
from recallbench.text.tokenizer import Bytes, load_tokenizer

PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


@pytest.fixture(autouse=True)
def small():
    """Everything that large corpora are cut into is small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module, "SHARD", 40)
        patch.setattr(corpus_module, "BATCH", 10)
        patch.setattr(documents_module, "PIECE", 25)
        patch.setattr(documents_module, "READ", 7)
        yield


def texts(count, seed=0):
    draw = random.Random(seed)
    return ["".join(draw.choices("abc é日\n", k=draw.randint(1, 60))) for _ in range(count)]


def jsonl(documents):
    return "".join(json.dumps({"text": document}) + "\n" for document in documents).encode()


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def data(folder, pattern="*", **settings):
    return TextData(
        path=str(folder / pattern), folder=str(folder.parent / "corpora"), **{"tokenizer": "bytes", **settings}
    )


def tokens(stream):
    return stream.read(0, len(stream)).tolist()


def as_tokens(documents):
    return [token for document in documents for token in (*document.encode(), Bytes.end)]


@pytest.mark.parametrize("packed", PACK)
def test_documents_are_those_of_the_files_in_their_order(packed, tmp_path):
    documents = texts(12)
    parts = [documents[:3], documents[3:4], documents[4:9], documents[9:]]
    contents = [jsonl(parts[0]), parts[1][0].encode(), jsonl(parts[2]), jsonl(parts[3])]
    names = ["a.jsonl", "b.txt", "c.jsonl", "d.jsonl"]
    files = {name + packed: PACK[packed](c) for name, c in zip(names, contents, strict=True)}
    corpus = prepare(data(write(tmp_path / "text", files), validation_path=str(tmp_path / f"text/d.jsonl{packed}")))
    assert tokens(corpus.train) == as_tokens(documents[:9])
    assert tokens(corpus.validation) == as_tokens(documents[9:])
    assert (corpus.documents, corpus.train_documents) == (12, 9)
    assert len(corpus.shards) > 5


def test_archives_of_several_streams_are_read_to_their_end(tmp_path):
    documents = texts(6)
    for packed in (".gz", ".xz", ".zst"):
        both = PACK[packed](jsonl(documents[:3])) + PACK[packed](jsonl(documents[3:]))
        folder = write(tmp_path / packed / "text", {f"a.jsonl{packed}": both})
        corpus = prepare(data(folder))
        assert tokens(corpus.train) + tokens(corpus.validation) == as_tokens(documents)


@settings(max_examples=20, derandomize=True)
@given(fraction=st.floats(0.001, 0.999), count=st.integers(2, 12))
def test_validation_is_the_tail_that_was_asked_for(fraction, count, tmp_path_factory):
    documents = texts(count, seed=count)
    folder = write(tmp_path_factory.mktemp("corpus") / "text", {"a.jsonl": jsonl(documents)})
    corpus = prepare(data(folder, validation_fraction=fraction))
    held_out = min(max(1, round(fraction * count)), count - 1)
    assert tokens(corpus.train) == as_tokens(documents[: count - held_out])
    assert tokens(corpus.validation) == as_tokens(documents[count - held_out :])


def test_a_corpus_is_named_by_its_content(tmp_path):
    """Not by its paths, nor by how it is packed or cut into files of lines."""
    documents = texts(8)
    one = prepare(data(write(tmp_path / "1" / "x", {"a.jsonl": jsonl(documents)})))
    parts = {"p.jsonl": jsonl(documents[:5]), "q.jsonl.xz": lzma.compress(jsonl(documents[5:]))}
    assert prepare(data(write(tmp_path / "2" / "y", parts))).digest == one.digest
    changed = {
        "text": prepare(data(write(tmp_path / "3" / "x", {"a.jsonl": jsonl([*documents[:-1], "other"])}))),
        "boundary": prepare(
            data(write(tmp_path / "4" / "x", {"a.jsonl": jsonl(["".join(documents[:2]), *documents[2:]])}))
        ),
        "split": prepare(data(tmp_path / "1" / "x", validation_fraction=0.5)),
        "tokenizer": prepare(data(tmp_path / "1" / "x", tokenizer="bpe", vocab_size=300)),
        "documents": prepare(data(tmp_path / "1" / "x", documents=7)),
    }
    assert len({one.digest, *(corpus.digest for corpus in changed.values())}) == 6


def test_a_tokeniser_is_trained_on_the_corpus_and_kept(tmp_path):
    documents = texts(8)
    corpus = prepare(data(write(tmp_path / "text", {"a.jsonl": jsonl(documents)}), tokenizer="bpe", vocab_size=300))
    tokenizer = load_tokenizer(corpus.tokenizer)
    assert tokenizer.decode(tokens(corpus.train)) == "".join(documents[:7])
    assert (corpus.vocab_size, corpus.end) == (tokenizer.vocab_size, tokenizer.end)


def test_a_dataset_is_its_rows(tmp_path):
    """A folder goes the way that a name of the hub goes."""
    documents = texts(9)
    files = {"train.jsonl": jsonl(documents[:6]), "validation.jsonl": jsonl(documents[6:])}
    folder = write(tmp_path / "text", files)
    settings = {"path": str(folder), "folder": str(tmp_path / "corpora"), "tokenizer": "bytes"}
    corpus = prepare(HuggingFaceData(**settings, validation_split="validation"))
    same = prepare(data(folder, validation_path=str(folder / "validation.jsonl")))
    assert corpus.digest == same.digest
    assert tokens(corpus.validation) == as_tokens(documents[6:])
    with pytest.raises(SettingError, match=r"data\.field is 'body': row 0 of .*text has text"):
        prepare(HuggingFaceData(**settings, field="body"))
    with pytest.raises(SettingError, match=r"data\.path is '.*text': it cannot be read"):
        prepare(HuggingFaceData(**settings, split="gone"))


BAD = {
    "utf8.jsonl": (jsonl(["a", "b"]) + b'{"text": "\xff"}\n', "line 3 is not UTF-8"),
    "utf8.txt": (b"one\ntwo\nthree \xff\nfour\n", "line 3 is not UTF-8"),
    "json.jsonl": (jsonl(["a"]) + b"\n{'text'}\n", "line 3 is not JSON"),
    "field.jsonl": (b'{"body": "a"}\n', "line 1 has no text in a field 'text'"),
    "empty.txt": (b"", "it is empty"),
    "empty.jsonl.gz": (gzip.compress(b""), "it is empty"),
    "cut.jsonl.gz": (gzip.compress(jsonl(texts(9)))[:-20], "it ends in the middle of its archive"),
    "cut.jsonl.xz": (lzma.compress(jsonl(texts(9)))[:-20], "it ends in the middle of its archive"),
    "cut.jsonl.zst": (zstandard.compress(jsonl(texts(9)))[:-20], "it ends in the middle of its archive"),
    "no.txt.gz": (b"plain text", "it cannot be unpacked"),
    "some.pdf": (b"text", "it must end in .txt, .md, .jsonl"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_file_is_said_and_mended(name, tmp_path, monkeypatch):
    """What came before it is not tokenised again."""
    content, expected = BAD[name]
    good = texts(10)
    folder = write(tmp_path / "text", {"a.jsonl": jsonl(good), "b." + name: content})
    with pytest.raises(SettingError, match=expected) as raised:
        prepare(data(folder))
    assert "b." + name in str(raised.value)
    assert "\n" not in str(raised.value)
    if name == "some.pdf":  # which is seen before anything is read
        return
    suffix = name.partition(".")[2]
    packed = next((p for p in PACK if p and suffix.endswith(p)), "")
    mended = PACK[packed](b"as it should be" if "txt" in suffix else jsonl(["as it should be"]))
    write(folder, {"b." + name: mended})
    seen = count_tokenised(monkeypatch)
    corpus = prepare(data(folder))
    assert tokens(corpus.train) + tokens(corpus.validation) == as_tokens([*good, "as it should be"])
    if name.startswith("empty"):
        assert seen == ["as it should be"]


def count_tokenised(monkeypatch):
    seen = []

    class Counting(Bytes):
        def encode_batch(self, texts):
            seen.extend(texts)
            return super().encode_batch(texts)

    monkeypatch.setattr(corpus_module, "load_tokenizer", lambda name: Counting())
    return seen


def test_a_corpus_that_is_killed_goes_on_from_its_last_shard(tmp_path, monkeypatch):
    documents = texts(15)
    parts = {"a.jsonl": jsonl(documents[:6]), "b.jsonl": jsonl(documents[6:])}
    expected = prepare(data(write(tmp_path / "whole" / "text", parts)))
    for shards in (1, 3, 6):
        folder = write(tmp_path / str(shards) / "text", parts)
        if not os.fork():  # a process that dies with nothing said
            write_shard, last = corpus_module.write_shard, f"{shards - 1:05}.npy"

            def killed(path, tokens, write_shard=write_shard, last=last):
                os._exit(9) if path.name == last else write_shard(path, tokens)

            corpus_module.write_shard = killed
            try:
                prepare(data(folder))
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 9
        done = {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*.npy")}
        assert len(done) == shards - 1
        seen = count_tokenised(monkeypatch)
        corpus = prepare(data(folder))
        monkeypatch.undo()
        assert (corpus.digest, corpus.shards) == (expected.digest, expected.shards)
        assert tokens(corpus.train) == tokens(expected.train)
        assert done == {path: path.stat().st_mtime_ns for path in done}
        assert len(as_tokens(seen)) == corpus.tokens - sum(corpus.shards[: shards - 1])


def test_processes_that_want_one_corpus_make_it_once(tmp_path, monkeypatch):
    folder = write(tmp_path / "text", {"a.jsonl": jsonl(texts(40))})
    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            status = 1
            try:
                prepare(data(folder))
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    seen = count_tokenised(monkeypatch)
    corpus = prepare(data(folder))
    assert tokens(corpus.train) + tokens(corpus.validation) == as_tokens(texts(40))
    assert not seen
    assert not list(corpus.folder.glob("claim*"))


def test_half_a_surrogate_is_text_that_cannot_be(tmp_path):
    """JSON can hold one, UTF-8 cannot."""
    lines = json.dumps({"text": "a\ud800b"}) + "\n" + json.dumps({"text": "c"}) + "\n"
    corpus = prepare(data(write(tmp_path / "text", {"a.jsonl": lines.encode()})))
    assert tokens(corpus.train) == as_tokens(["a?b"])


def test_a_corpus_whose_files_have_changed_is_read_again(tmp_path):
    documents = texts(8)
    folder = write(tmp_path / "text", {"a.jsonl": jsonl(documents)})
    before = prepare(data(folder))
    write(folder, {"a.jsonl": jsonl(documents[1:])})
    after = prepare(data(folder))
    assert after.digest != before.digest
    assert tokens(after.train) == as_tokens(documents[1:7])


def test_a_single_document_has_nothing_to_validate_on(tmp_path):
    with pytest.raises(SettingError, match="a single document"):
        prepare(data(write(tmp_path / "text", {"a.txt": b"text"})))
    with pytest.raises(SettingError, match="there is no such file"):
        prepare(data(tmp_path / "gone"))


@settings(max_examples=50, derandomize=True)
@given(windows=st.integers(1, 9), batch_size=st.integers(1, 7), seed=st.integers(0, 3))
def test_every_window_is_read_once_before_any_is_read_again(windows, batch_size, seed):
    order = Order(windows, batch_size, seed)
    read = [window for step in range(2 * windows) for window in order(step)]
    for epoch in range(2 * batch_size):
        assert sorted(read[epoch * windows : (epoch + 1) * windows]) == list(range(windows))
    assert Order(windows, batch_size, seed)(5) == order(5)  # whatever has been asked for before


def test_windows_are_the_stream(tmp_path):
    corpus = prepare(data(write(tmp_path / "text", {"a.jsonl": jsonl(texts(8))})))
    stream: Stream = corpus.train
    everything = tokens(stream)
    for length in (1, 4, len(stream) - 1):
        count = stream.windows(length)
        rows = stream.rows(range(count), length).tolist()
        assert rows == [everything[i * length : (i + 1) * length + 1] for i in range(count)]
    assert stream.windows(len(stream)) == 0
