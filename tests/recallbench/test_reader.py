"""Reading in batches gives what each prompt alone gives in parallel form, whatever their lengths."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from models import LanguageModel, ModelConfig, build_model
from recallbench.recall.reader import SPREAD, Reader, batches, continuations, log_likelihoods
from recallbench.text.tokenizer import Bytes

VOCABULARY = 257
LAYERS = {
    "attention": [{"name": "attention", "num_heads": 2, "use_rope": True}],
    "hybrid": [
        "short_conv",
        {"name": "linear_attention", "feature_dim": 4},
        {"name": "sliding_window", "window_size": 5},
    ],
    "mamba": ["mamba"],
    "gated_deltanet": [{"name": "gated_deltanet", "num_heads": 1}],
}


def perturbed(model):
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module", params=[*LAYERS, "gpt2"])
def model(request, tmp_path_factory):
    torch.manual_seed(0)
    if request.param == "gpt2":
        folder = tmp_path_factory.mktemp("gpt2")
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, bos_token_id=256, eos_token_id=256
        )
        perturbed(transformers.GPT2LMHeadModel(config)).save_pretrained(folder)
        return build_model({"name": str(folder), "vocab_size": VOCABULARY})
    return perturbed(LanguageModel(ModelConfig(vocab_size=VOCABULARY, d_model=16, layers=LAYERS[request.param])))


prompts = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12), min_size=1, max_size=5)


@settings(max_examples=8)
@given(prompts=prompts, count=st.integers(1, 5), end=st.integers(0, VOCABULARY - 1))
def test_a_batch_of_any_lengths_continues_each_prompt_as_alone(model, prompts, count, end):
    expected = []
    with torch.no_grad():
        for prompt in prompts:
            tokens, written = list(prompt), []
            while len(written) < count and end not in written:
                written.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
                tokens.append(written[-1])
            expected.append(written)
    got = continuations(model, prompts, count, vocab_size=VOCABULARY, ends=lambda tokens: tokens[-1] == end)
    assert got == expected


@settings(max_examples=8)
@given(before=prompts, after=prompts)
def test_log_likelihoods_are_sums_over_the_continuation(model, before, after):
    pairs = list(zip(before, after, strict=False))
    for (context, continuation), (score, greedy) in zip(pairs, log_likelihoods(model, pairs), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*context, *continuation]]))[0].double().log_softmax(-1)
        here = logits[len(context) - 1 : -1]
        wanted = torch.tensor(continuation)
        assert score == pytest.approx(here[torch.arange(len(wanted)), wanted].sum().item(), abs=1e-3)
        assert greedy == bool((here.argmax(-1) == wanted).all())


@given(lengths=st.lists(st.integers(1, 200), max_size=30), size=st.integers(1, 7))
def test_batches_hold_every_row_once_and_similar_lengths(lengths, size):
    found = list(batches(lengths, size))
    assert sorted(row for batch in found for row in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) <= size
        assert lengths[batch[0]] - lengths[batch[-1]] <= SPREAD


class Recorder:
    """A model that notes what it was asked to read and says `a` forever."""

    def __init__(self):
        self.read = []

    def parameters(self):
        return iter([torch.zeros(1)])

    def init_state(self, batch_size, *, max_length=None):
        return None

    def prefill(self, tokens, state, positions):
        self.read += tokens.tolist()
        return torch.nn.functional.one_hot(torch.full((len(tokens), 1), ord("a")), VOCABULARY), state

    def step(self, token, state):
        return torch.nn.functional.one_hot(torch.full((len(token),), ord("a")), VOCABULARY), state


@given(text=st.text("abc", max_size=60), context=st.integers(20, 60), count=st.integers(1, 8), twice=st.booleans())
def test_a_prompt_is_read_whole_or_its_end_once_or_twice(text, context, count, twice):
    recorder = Recorder()
    reader = Reader(recorder, Bytes(), context, 4, prefix=[256], read_twice=twice)  # pyright: ignore
    assert reader.generate([text], count, ["aaa"]) == ["a" * min(count, 2) if count < 3 else ""]
    (read,) = recorder.read
    assert len(read) + count <= context
    assert read[0] == 256
    rest = bytes(read[1:]).decode()
    if twice:
        first, _, second = rest.partition("\n")
        assert first == second
        rest = second
    assert text.endswith(rest)
    assert rest == text or len(rest) == reader.room(count)
