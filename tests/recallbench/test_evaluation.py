"""Evaluations as runs, and agreement with lm-evaluation-harness's own adapter on a model saved in both forms."""

import functools
import json
import shutil

import pytest
import torch
import transformers
from lm_eval import evaluate
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from models import LanguageModel, ModelConfig
from models.settings import SettingError, SettingErrors
from recallbench.any_run import AnyRun
from recallbench.checkpoint import WritableDirectory
from recallbench.interrupt import Stopped, StopRequest
from recallbench.perform import perform
from recallbench.recall import harness
from recallbench.recall.harness import ReaderLM, load_tasks
from recallbench.recall.reader import Reader
from recallbench.record import RunDirectory
from recallbench.runs import execution_of, resolve, runs_of
from recallbench.text.tokenizer import load_tokenizer

D, HEADS, LAYERS, WIDTH = 24, 2, 2, 48
TASK = {
    "tokenizer": None,
    "context": 160,
    "read_twice": False,
    "dtype": "float32",
    "limit": None,
    "batch_size": 3,
}


def renamed(name, names):
    return functools.reduce(lambda text, pair: text.replace(*pair), names.items(), name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One small transformer as our training leaves it, as transformers saves it and as a release has it; and data."""
    root = tmp_path_factory.mktemp("evaluation")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["title: the device, the name and the date"] * 3, trainer)
    saved = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    saved.save_pretrained(root / "llama")

    torch.manual_seed(0)
    layer = {"name": "attention", "num_heads": HEADS, "use_rope": True}
    config = ModelConfig(
        vocab_size=len(saved), d_model=D, layers=[layer], repeats=LAYERS, mlp_expand=WIDTH / D, norm="rms"
    )
    ours = LanguageModel(config)
    for parameter in ours.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(saved),
            hidden_size=D,
            intermediate_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            rms_norm_eps=1e-5,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=saved.eos_token_id,
        )
    )
    names = {
        "embedding.": "model.embed_tokens.",
        "blocks.": "model.layers.",
        ".mixer_norm.": ".input_layernorm.",
        ".mlp_norm.": ".post_attention_layernorm.",
        ".mixer.": ".self_attn.",
    }
    state = {}
    for name, tensor in ours.state_dict().items():
        theirs = "model.norm.weight" if name == "norm.weight" else renamed(name, names)
        parts = ("gate_proj", "up_proj") if "mlp.in_proj" in theirs else ("in_proj",)
        for part, half in zip(parts, tensor.chunk(len(parts)), strict=True):
            state[theirs.replace("in_proj", part)] = half
    missing = llama.load_state_dict(state, strict=False)
    assert missing.missing_keys == ["lm_head.weight"]
    assert not missing.unexpected_keys
    llama.save_pretrained(root / "llama")

    settings = {
        "model.family": None,
        **{f"model.{key}": value for key, value in config.model_dump(mode="json").items()},
        "corpus.tokenizer": str(root / "llama"),
        "train.learning_rate": 0.001,
    }
    training = AnyRun(config, "attention", settings, {"a": "training"})
    directory = WritableDirectory(root / "runs", training)
    directory.path.mkdir(parents=True)
    directory.begin()
    directory.save_weights(dict(ours.state_dict()))
    directory.write_record(None, "completed", None, {})

    published = {
        "blocks.": "layers.",
        "mixer_norm.": "norm1.",
        "mlp_norm.": "norm2.",
        "mixer.o_proj.": "mixer.out_proj.",
        "embedding.": "embeddings.word_embeddings.",
    }
    release = {"transformer." + renamed(name, published): tensor for name, tensor in ours.state_dict().items()}
    for i in range(LAYERS):
        layer = f"transformer.layers.{i}."
        q, k, v = (release.pop(f"{layer}mixer.{part}_proj.weight") for part in "qkv")
        gate, up = release.pop(f"{layer}mlp.in_proj.weight").chunk(2)
        release |= {f"{layer}mixer.Wqkv.weight": torch.cat([q, k, v]), f"{layer}mlp.fc1.weight": torch.cat([up, gate])}
        release[f"{layer}mlp.fc2.weight"] = release.pop(f"{layer}mlp.down_proj.weight")
    release["transformer.ln_f.weight"] = release.pop("transformer.norm.weight")
    (root / "release").mkdir()
    torch.save(release, root / "release" / "pytorch_model.bin")
    (root / "release" / "config.json").write_text(json.dumps({"n_head": HEADS, "rotary_emb_fraction": 1}))

    (root / "data").mkdir()
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(7):
        filler = "x" * int(torch.randint(5, 90, (), generator=generator))
        rows.append(
            {"doc_id": str(i), "text": f" name: device {i}\n{filler}\n name: ", "value": "ae"[i % 2], "key": "name"}
        )
    (root / "data" / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root, training.identity


def configuration(folder, **changes):
    root, trained = folder
    task = {**TASK, "name": "swde", "data_dir": str(root / "data"), **changes.pop("task", {})}
    model = changes.pop("model", {"run": trained})
    return {
        "task": task,
        "model": model,
        "mixer": {"name": "based"},
        "runs": str(root / "runs"),
        "device": "cpu",
        **changes,
    }


def reader(folder, **changes):
    """Of the training's weights, whatever the tests below give it to read."""
    run = resolve(configuration(folder, **changes))
    model = run.source.build(torch.device("cpu"), torch.float32)
    return Reader(model, load_tokenizer(run.tokenizer), run.task.context, run.task.batch_size)


@pytest.fixture(scope="module")
def theirs(folder):
    pytest.importorskip("accelerate")  # which that adapter needs, and nothing else here
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder[0] / "llama"), device="cpu", batch_size=3, max_length=160, dtype="float32")


def instances(kind, *arguments):
    return [Instance(request_type=kind, doc={}, arguments=each, idx=i) for i, each in enumerate(arguments)]


@torch.no_grad()
def test_our_answers_are_those_of_the_harness_s_own_adapter(folder, theirs):
    ours = ReaderLM(reader(folder))
    pairs = [("title: the", " device"), ("", "the name"), ("a " * 200, "the date"), ("title: ", "x" * 9), ("q", "the")]
    for (score, greedy), (expected, their_greedy) in zip(
        ours.loglikelihood(instances("loglikelihood", *pairs), disable_tqdm=True),
        theirs.loglikelihood(instances("loglikelihood", *pairs), disable_tqdm=True),
        strict=True,
    ):
        assert score == pytest.approx(expected, abs=1e-3)
        assert greedy == their_greedy
    texts = [("the device of the name " * n,) for n in (1, 9, 40)]
    assert ours.loglikelihood_rolling(instances("loglikelihood_rolling", *texts)) == pytest.approx(
        theirs.loglikelihood_rolling(instances("loglikelihood_rolling", *texts), disable_tqdm=True), abs=1e-2
    )
    how = {"until": ["\n", "e t"], "max_gen_toks": 12}
    asked = [(text, how) for text in ("title:", "the device\nname: ", "the " * 300, "a", "x" * 40)]
    generated = ours.generate_until(instances("generate_until", *asked))
    assert generated == theirs.generate_until(instances("generate_until", *asked), disable_tqdm=True)
    assert any(generated)


def test_the_score_of_a_task_is_the_harness_s_in_each_form_of_the_model(folder, theirs):
    root, _ = folder
    tasks = load_tasks(["swde"], str(root / "data"), None, 160)
    loaded = {"tasks": tasks, "groups": {}, "group_map": {}}
    expected = evaluate(theirs, loaded, bootstrap_iters=0)["results"]["swde"]["contains,none"]
    assert 0 < expected < 1
    stop = StopRequest()
    for model in ({"run": folder[1]}, {"name": str(root / "llama")}, {"checkpoint": str(root / "release")}):
        config = configuration(folder, model=model, task={"tokenizer": str(root / "llama")})
        (run,) = runs_of(config)
        perform([run], execution_of(config), stop)
        record = RunDirectory(root / "runs", run.identity).record()
        assert record["status"] == "completed", record["reason"]
        assert record["metrics"]["accuracy"] == expected
        assert record["metrics"]["examples"] == 7
        assert record["metrics"]["accuracy_low"] < expected < record["metrics"]["accuracy_high"]
        assert record["state"]["bytes"] == 160 * 2 * D * 4 * LAYERS
        assert [each["task"] for each in record["slices"]] == ["swde"]


def test_squad_is_answered_in_48_tokens_of_one_line(folder):
    root, _ = folder
    asked = []

    class Asked:
        prefix, tokenizer = (), load_tokenizer(str(root / "llama"))

        def generate(self, prompts, count, until):
            asked.append((count, tuple(until)))
            return ["an a" for _ in prompts]

    tasks = load_tasks(["squad_completion"], str(root / "data"), None, 160)
    harness.answer_as_published(tasks)
    metrics, _ = harness.run_tasks(Asked(), tasks, 3, None)  # pyright: ignore
    assert asked == [(48, ("\n",))]
    assert (metrics["accuracy"], metrics["examples"]) == (2 / 3, 3)


def test_documents_of_ones_own_are_a_run_like_any_other(folder):
    root, trained = folder
    task = {"name": "extraction", "path": str(root / "documents.jsonl"), "generate": 16}
    config = configuration(folder, task=task)
    del config["task"]["data_dir"]
    (run,) = runs_of(config)
    stopped = StopRequest()
    stopped.ask(2)
    with pytest.raises(Stopped):
        perform([run], execution_of(config), stopped)
    assert not RunDirectory(root / "runs", run.identity).has_record()
    perform([run], execution_of(config), StopRequest())
    record = RunDirectory(root / "runs", run.identity).record()
    assert record["status"] == "completed", record["reason"]
    assert record["config"]["model.run"] == trained
    assert record["family"] == "attention"
    assert {axis for each in record["slices"] for axis in ("distance", "length") if axis in each} == {
        "distance",
        "length",
    }
    assert sum(each["examples"] for each in record["slices"] if "length" in each) == record["metrics"]["examples"]


def test_of_an_imported_training_what_was_asked_is_known_and_nothing_else(folder, tmp_path):
    """Its record has come without its weights, and with that of an evaluation."""
    root, trained = folder
    asked = resolve(configuration(folder))
    here = {"runs": str(tmp_path)}
    (tmp_path / trained).mkdir()
    shutil.copy(root / "runs" / trained / "result.json", tmp_path / trained)
    again = resolve(configuration(folder, model={"run": trained[:8]}, **here))
    assert (again.identity, again.settings) == (asked.identity, asked.settings)
    with pytest.raises(SettingError, match=f"model.run is '{trained}': its weights are not in"):
        again.check_weights(str(tmp_path))
    asked.check_weights(str(root / "runs"))
    imported = RunDirectory(tmp_path, asked.identity)
    imported.path.mkdir()
    imported.record_path.write_text(json.dumps({"status": "completed", "config": asked.settings}))
    with pytest.raises(SettingErrors, match="it must be the identity of a completed run"):
        resolve(configuration(folder, model={"run": asked.identity}, **here))


def test_an_identity_is_of_what_changes_the_result(folder, tmp_path):
    root, _ = folder

    def identity(**changes):
        return resolve(configuration(folder, **changes)).identity

    same = identity()
    (tmp_path / "elsewhere").symlink_to(root / "data")
    assert identity(task={"data_dir": str(tmp_path / "elsewhere")}, device="auto", study="s") == same
    assert identity(task={"batch_size": 1}) == same
    assert identity(task={"tokenizer": str(root / "llama")}) == same
    (tmp_path / "data").mkdir()
    text = (root / "data" / "validation.jsonl").read_text()
    (tmp_path / "data" / "validation.jsonl").write_text(text.replace("device 3", "device 4"))
    others = [
        identity(task={"data_dir": str(tmp_path / "data")}),
        identity(task={"read_twice": True}),
        identity(task={"context": 161}),
        identity(task={"dtype": "bfloat16"}),
        identity(task={"limit": 3}),
        identity(task={"name": "fda"}),
        identity(model={"name": str(root / "llama")}),
    ]
    assert len({same, *others}) == 1 + len(others)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": {"contex": 3}}, "task.contex is 3: there is no such setting; did you mean context?"),
        ({"task": {"context": 60}}, "task.context is 60: it must have room for an answer of 48 tokens"),
        ({"task": {"data_dir": "/nowhere"}}, "task.data_dir is '/nowhere': it must be a folder"),
        ({"task": {"tokenizer": "/nowhere.json"}}, "task.tokenizer is '/nowhere.json': there is no such file"),
        ({"task": {"name": "lm_eval", "tasks": ["swed"]}}, "task.tasks is 'swed': it must be a task, group or tag"),
        ({"model": {"run": "0123"}}, "model.run is '0123': it must be the identity of a completed run"),
        ({"model": {"layers": ["attention"]}}, "an evaluation needs weights: model=trained"),
        ({"model": {"checkpoint": "/nowhere"}}, "model.checkpoint is '/nowhere': there is no such folder"),
        ({"task": {"context": 600}, "model": "llama"}, "task.context is 600: the model reads 512 tokens at the most"),
    ],
)
def test_bad_input_is_told_in_a_sentence(changes, said, folder, monkeypatch):
    monkeypatch.setattr(harness, "ROOT", harness.ROOT / "fda")  # an index of all tasks takes seconds
    if changes.get("model") == "llama":
        changes = {**changes, "model": {"name": str(folder[0] / "llama")}}
    with pytest.raises(SettingErrors) as error:
        resolve(configuration(folder, **changes))
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_data_that_cannot_be_had_is_told_before_anything_runs(folder, tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(SettingErrors, match=r"task.data_dir is .*: the data of swde must be in it"):
        resolve(configuration(folder, task={"data_dir": str(tmp_path / "data")}))
