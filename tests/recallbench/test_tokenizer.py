"""Tokenisers give back what they were given, and say what is wrong in a sentence."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.settings import SettingError
from recallbench.text.tokenizer import END, load_tokenizer, train_bpe

WORDS = ["the cat sat on the mat", "and the dog ate 12 fish", "naïve façade\n\n  日本語 🙂"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """One of each kind, the merges of the tiktoken file by hand."""
    folder = tmp_path_factory.mktemp("tokenizers")
    ranks = [bytes([b]) for b in range(256)] + [b"th", b"the", b" the", b"at"]
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(ranks)]
    (folder / "small.tiktoken").write_text("\n".join(lines))
    train_bpe(5 * WORDS, 300, folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(
        f'{{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "{END}"}}'
    )
    names = ["bytes", str(folder / "small.tiktoken"), str(folder / "tokenizer.json"), str(folder)]
    return [load_tokenizer(name) for name in names]


TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.sampled_from([*"  \n", "the", END, *WORDS])).map("".join),
)


@settings(max_examples=150, derandomize=True)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
def test_text_comes_back(texts, tokenizers):
    """Also what looks like the token at the end of a document, which no text ever holds."""
    for tokenizer in tokenizers:
        encoded = [tokenizer.encode(text) for text in texts]
        assert tokenizer.encode_batch(texts) == encoded
        assert [tokenizer.decode([*tokens, tokenizer.end]) for tokens in encoded] == texts
        for tokens in encoded:
            assert all(0 <= token < tokenizer.vocab_size and token != tokenizer.end for token in tokens)


def test_merges_shorten_what_was_trained_on(tokenizers):
    lengths = [len(tokenizer.encode(WORDS[0])) for tokenizer in tokenizers]
    assert lengths[0] == len(WORDS[0])
    assert lengths[1] < lengths[0]
    assert lengths[2] == lengths[3] < lengths[1]
    assert tokenizers[1].encode("the the") == [257, 258]  # the whole of it first, then with its space
    assert len({tokenizer.digest for tokenizer in tokenizers}) == 4


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("gone.tiktoken", None, "there is no such file"),
        ("gone.json", None, "there is no such file"),
        ("some.tiktoken", "YQ== 0\nYQ=\n", "line 2 must be a token in base64 and its rank"),
        ("some.tiktoken", "YQ== 0\n", "every single byte must have one"),
        ("some.json", "{}", "it must be a tokenizer.json"),
    ],
)
def test_what_is_wrong_is_said(name, content, expected, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingError, match=expected) as raised:
        load_tokenizer(str(path))
    assert str(path) in str(raised.value)


def test_a_vocabulary_has_room_for_every_byte(tmp_path):
    with pytest.raises(SettingError, match="at least 257"):
        train_bpe(WORDS, 256, tmp_path / "tokenizer.json")
