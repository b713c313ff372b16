"""Published weights: what transformers saves, our model loads, to the same logits and the same generated tokens."""

import pytest
import torch
import transformers

from models import build_model
from models.checkpoints import load_mamba

TINY = {
    "mamba": transformers.MambaConfig(
        vocab_size=61, hidden_size=24, num_hidden_layers=3, state_size=8, time_step_rank=2
    ),
    "mamba2": transformers.Mamba2Config(
        vocab_size=61, hidden_size=24, num_hidden_layers=3, state_size=8, head_dim=8, num_heads=6, n_groups=2
    ),
}
OTHERS = {
    "llama": transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
    ),
    "gpt2": transformers.GPT2Config(vocab_size=61, n_embd=24, n_layer=2, n_head=2),
}


@pytest.fixture(params=[*TINY, *OTHERS])
def saved(request, tmp_path):
    """A model with weights away from their initialisation, saved to disk, and its folder."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config({**TINY, **OTHERS}[request.param]).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    return model, tmp_path


def generate(model, tokens, count):
    """Greedy continuation [B, count] by prefill and steps."""
    logits, state = model.prefill(tokens, model.init_state(len(tokens)))
    token, out = logits[:, -1].argmax(-1), []
    for _ in range(count):
        out.append(token)
        logits, state = model.step(token, state)
        token = logits.argmax(-1)
    return torch.stack(out, 1)


@torch.no_grad()
def check_same(theirs, ours):
    tokens = torch.randint(61, (2, 19))
    expected = theirs(tokens).logits
    assert torch.allclose(ours(tokens), expected, atol=1e-4, rtol=1e-4)
    continued = theirs.generate(tokens, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(generate(ours, tokens, 12), continued[:, 19:])


@pytest.mark.parametrize("saved", TINY, indirect=True)
def test_mamba_loads_by_key(saved):
    theirs, folder = saved
    check_same(theirs, load_mamba(folder))


def test_any_causal_language_model_keeps_the_interface(saved):
    theirs, folder = saved
    ours = build_model({"name": str(folder), "vocab_size": 61})
    check_same(theirs, ours)
    positions = torch.tensor([[3, 0], [7, 18]])
    tokens = torch.randint(61, (2, 19))
    with torch.no_grad():
        assert torch.allclose(
            ours(tokens, positions), ours(tokens).gather(1, positions[..., None].expand(-1, -1, 61)), atol=1e-5
        )


def test_what_does_not_match_is_listed(tmp_path):
    model = transformers.MambaForCausalLM(TINY["mamba"])
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"state_size": 8', '"state_size": 4'))
    with pytest.raises(ValueError, match=r"blocks\.0\.mixer\.A_log: .*8.* in the checkpoint, .*4.* in the model"):
        load_mamba(tmp_path)


def test_state_of_an_adapted_model_is_its_cache(tmp_path):
    from recallbench.state import measure_state

    transformers.LlamaForCausalLM(OTHERS["llama"]).save_pretrained(tmp_path)
    model = build_model({"name": str(tmp_path), "vocab_size": 61})
    for n in (1, 7, 40):
        state = measure_state(model, n)
        assert state["bytes"] == 2 * n * 12 * 4 * 2  # keys and values, one head of 12, float32, two layers
        assert len(state["layers"]) == 2
