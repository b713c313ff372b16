"""Measuring speed: the largest batch, the loop that is timed, the floor beside it, and the record."""

import copy
import dataclasses
import json
import math

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from models import MIXERS, build_model
from models.settings import SettingError, SettingErrors
from recallbench.__main__ import CONFIGURATION
from recallbench.device import device_name
from recallbench.execution import ExecutionConfig
from recallbench.interrupt import Stopped, StopRequest
from recallbench.memory import out_of_memory
from recallbench.perform import perform
from recallbench.runs import resolve, runs_of
from recallbench.state import measure_state
from recallbench.throughput import execute
from recallbench.throughput import measure as measuring
from recallbench.throughput.decode import Decoder, sample
from recallbench.throughput.floor import Floor, floor, weight_bytes, weights_read, written
from recallbench.throughput.machine import Rates, rates
from recallbench.throughput.measurement import ThroughputConfig, execution_of
from recallbench.throughput.prefill import Prefill
from recallbench.throughput.timing import durations, spread
from sweeps.pool import places

CPU = torch.device("cpu")
PLAIN = [name for name, kind in MIXERS.items() if not kind.needs_gpu]
TINY = {"batch_size": 3, "prompt_length": 9, "generate": 4, "dtype": "float32", "passes": 2, "vocab_size": 16}


def config(changes=None, **throughput):
    return {
        "throughput": {**TINY, **throughput},
        "model": {"d_model": 8, "layers": ["short_conv", "mixer"]},
        "mixer": {"name": "attention"},
        "device": "cpu",
        **(changes or {}),
    }


def build(*layers, dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = build_model({"vocab_size": 16, "d_model": 16, "layers": list(layers), **options})
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.to(dtype).requires_grad_(False)


def carry_out(folder, *configs, **execution):
    """The records of some configurations."""
    runs = [run for each in configs for run in runs_of(each)]
    perform(runs, ExecutionConfig(runs=str(folder), device="cpu", **execution), StopRequest())
    return [json.loads((folder / run.identity / "result.json").read_text(), parse_constant=pytest.fail) for run in runs]


@pytest.mark.parametrize(("as_written", "in_graph"), [(40, 40), (40, 44), (40, 31), (1, 1), (3, 0), (0, 0)])
def test_the_largest_batch_is_the_largest_of_what_is_timed(as_written, in_graph, monkeypatch):
    """Of steps as they will be timed, of which few are tried, whatever fits as written."""
    real, tried = measuring.workload, []

    def within(run, model, batch_size):
        graph = run.throughput.cuda_graph
        tried.extend([batch_size] if graph else [])
        if batch_size > (in_graph if graph else as_written):
            raise torch.OutOfMemoryError
        return real(run, model, batch_size)

    monkeypatch.setattr(measuring, "workload", within)
    run = resolve(config(cuda_graph=True))
    run = dataclasses.replace(run, throughput=run.throughput.model_copy(update={"batch_size": "largest"}))
    if not min(as_written, in_graph):
        with pytest.raises(torch.OutOfMemoryError, match="not even one sequence fits"):
            measuring.measure(run, CPU, StopRequest())
        return
    found = measuring.measure(run, CPU, StopRequest())["metrics"]["batch_size"]
    assert found <= in_graph <= max(found + 1, found * 9 / 8)
    assert len(tried) <= 5


def generated(decoder, step):
    """The tokens of one pass, [B, steps], and the state behind them."""
    decoder.restart()
    tokens = [decoder.token.clone()]
    for _ in range(decoder.steps - 1):
        step()
        tokens.append(decoder.token.clone())
    return torch.stack(tokens, 1)


@pytest.mark.parametrize("mixer", PLAIN)
def test_steps_generate_what_reading_everything_anew_would(mixer):
    """In new tensors and in place, in the first pass and in the next."""
    model = build(mixer, "short_conv", dtype=torch.float64)
    decoder = Decoder(model, 3, prompt_length=11, generate=5, state_dtype=torch.float64)
    tokens = decoder.prompt
    for _ in range(5):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
    for step in (decoder.step, decoder.step_in_place, decoder.step):
        assert (generated(decoder, step) == tokens[:, 11:]).all()


@pytest.mark.parametrize("mixer", PLAIN)
def test_a_step_in_place_leaves_every_tensor_where_it_is(mixer):
    decoder = Decoder(build(mixer), 2, prompt_length=5, generate=3, state_dtype=torch.float32)
    places = [t.data_ptr() for t in torch.utils._pytree.tree_leaves([decoder.token, decoder.state])]
    for _ in range(3):
        decoder.step_in_place()
    assert [t.data_ptr() for t in torch.utils._pytree.tree_leaves([decoder.token, decoder.state])] == places
    assert decoder.of_one_row is not None


@pytest.fixture
def graphs(monkeypatch):
    """What is given to a compiler, which on a CPU takes minutes: here all but its last part, the generating of code."""
    compile, to_operations = torch.compile, torch._dynamo.lookup_backend("aot_eager")
    given = []

    def record(graph, inputs):
        given.append(graph)
        return to_operations(graph, inputs)

    monkeypatch.setattr(torch, "compile", lambda f, *, dynamic, options: compile(f, dynamic=dynamic, backend=record))
    return given


@torch.no_grad()
@pytest.mark.parametrize("mixer", PLAIN)
def test_compiled_blocks_step_as_they_are_written(mixer, graphs):
    """In place, as a graph records them; and what is compiled for a block serves all like it."""
    model = build(mixer, mixer, mlp_expand=2, norm="rms")
    written = Decoder(model, 2, prompt_length=9, generate=4, state_dtype=torch.float32)
    compiled = copy.deepcopy(written)
    compiled.model_step = compiled.model.generate_step()
    for _ in range(3):
        written.step_in_place()
        compiled.step_in_place()
        assert (compiled.token == written.token).all()
    assert len({graph.code for graph in graphs}) == len(graphs) > 0
    for a, b in zip(*map(torch.utils._pytree.tree_leaves, (compiled.state, written.state)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a graph needs a GPU")
@pytest.mark.parametrize("mixer", PLAIN)
def test_a_graph_generates_what_steps_do(mixer):
    torch.manual_seed(0)
    model = build(mixer, "short_conv").cuda()
    made = []
    for cuda_graph in (False, True):
        torch.manual_seed(1)
        decoder = Decoder(model, 3, 11, 5, torch.float32, cuda_graph=cuda_graph)
        assert decoder.in_graph == cuda_graph
        made += [generated(decoder, decoder.step) for _ in range(2)]
    assert all((tokens == made[0]).all() for tokens in made)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a graph needs a GPU")
@pytest.mark.parametrize("mixer", PLAIN)
@torch.no_grad()
def test_a_graph_reads_what_a_prefill_does(mixer):
    torch.manual_seed(0)
    read = Prefill(build(mixer, "short_conv").cuda(), 3, 70, torch.float32, cuda_graph=True)
    assert read.in_graph
    read.prompts.random_(16)
    read.step()
    replayed = read.logits.clone()
    read.graph = None
    read.step()
    torch.testing.assert_close(replayed, read.logits)


def test_tokens_are_drawn_with_the_probabilities_of_the_model():
    torch.manual_seed(0)
    logits, n = torch.tensor([2.0, 0.0, -1.0, -math.inf]), 200_000
    assert sample(logits.expand(3, -1), 0).tolist() == [0, 0, 0]
    for temperature in (0.5, 1.0, 3.0):
        drawn = sample(logits.expand(n, -1), temperature).bincount(minlength=4) / n
        expected = (logits / temperature).softmax(0)
        assert (drawn - expected).abs().max() < 4 * (0.25 / n) ** 0.5


@pytest.mark.parametrize("mixer", PLAIN)
def test_a_step_writes_some_of_the_state_and_no_more(mixer):
    model = build(mixer)
    held = measure_state(model, 41)["bytes"]
    assert 0 < written(model, 40, torch.float32) <= held


def test_caches_write_a_token_and_recurrences_everything():
    length, k_and_v = torch.int64.itemsize, 2 * 16
    assert written(build("attention"), 40, torch.float32) == 4 * k_and_v + length
    assert written(build("attention"), 40, torch.bfloat16) == 2 * k_and_v + length
    assert written(build({"name": "sliding_window", "window_size": 8}), 40, torch.float32) == 4 * k_and_v + length
    for mixer in ("mamba", "gla", "deltanet", "rwkv7"):
        model = build(mixer)
        assert written(model, 40, torch.float32) == measure_state(model, 40)["bytes"]


@given(tokens=st.integers(1, 40))
@settings(max_examples=20)
def test_of_an_embedding_that_is_no_head_the_rows_are_read(tokens):
    tied, untied = build("attention"), build("attention", tie_embeddings=False)
    assert weights_read(tied, tokens) == weight_bytes(tied)
    table = 16 * 16 * 4
    assert weight_bytes(untied) == weight_bytes(tied) + table
    assert weights_read(untied, tokens) == weight_bytes(tied) + min(tokens, 16) * 16 * 4


def test_the_floor_of_attention_adds_up():
    """B = 3 rows of width 8, a vocabulary of 16; four projections and, against 11 keys, scores and their values."""
    run = resolve(config({"model": {"d_model": 8, "layers": ["mixer"]}}))
    model = build_model(run.model).requires_grad_(False)
    least = floor(run, model, 3)
    B, D, V, seen = 3, 8, 16, 9 + 4 // 2
    weights = 4 * (V * D + 4 * D * D + 4 * D)  # two norms, each a scale and a shift
    assert least.bytes == weights + B * (4 * 2 * D * seen + (4 * 2 * D + 8))
    assert least.flops == B * 2 * (4 * D * D + D * V + 2 * (seen + 1) * D)
    assert least.seconds(Rates(least.bytes, 1e30)) == pytest.approx(1)
    assert least.seconds(Rates(1e30, least.flops)) == pytest.approx(1)
    prefill = floor(resolve(config({"model": {"d_model": 8, "layers": ["mixer"]}}, kind="prefill")), model, 3)
    assert prefill.bytes == weights + B * (9 * 8 + 4 * 2 * D * 9 + 4 * V)
    assert prefill.flops == B * 2 * (4 * D * D * 9 + D * V + 2 * 9 * 9 * D)


@pytest.mark.parametrize("kind", ["prefill", "decode"])
@pytest.mark.parametrize("mixer", PLAIN)
def test_every_mixer_has_a_floor(mixer, kind):
    run = resolve(config({"mixer": {"name": mixer}}, kind=kind))
    least = floor(run, build_model(run.model).requires_grad_(False), 3)
    assert least.bytes > 0
    assert least.flops > 3 * 2 * 8 * 16  # the head alone


def test_rates_and_durations_are_those_of_calls():
    found = rates(CPU, torch.float32)
    assert 0 < found.bytes_per_second < 1e13
    assert 0 < found.flops_per_second < 1e16
    assert rates(CPU, torch.float32) is found  # measured once
    calls = []
    assert len(durations(lambda: calls.append(1), 7, CPU)) == len(calls) == 7
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {
        "seconds_p50": 3.0,
        "seconds_p95": pytest.approx(4.8),
        "seconds_p99": pytest.approx(4.96),
        "seconds_min": 1.0,
        "seconds_max": 5.0,
    }


def test_defaults_of_the_configuration_are_those_of_the_schema():
    written_down = yaml.safe_load((CONFIGURATION / "throughput.yaml").read_text())["throughput"]
    assert ThroughputConfig(**written_down) == ThroughputConfig()
    assert set(written_down) == set(ThroughputConfig.model_fields)


OTHER = {
    "kind": "prefill",
    "batch_size": 4,
    "prompt_length": 10,
    "generate": 5,
    "dtype": "bfloat16",
    "state_dtype": "float16",
    "backend": "reference",
    "temperature": 0.5,
    "cuda_graph": False,
    "passes": 3,
    "vocab_size": 17,
    "device_name": "another",
}


def test_the_identity_is_that_of_every_setting_and_of_the_device():
    assert set(OTHER) == set(ThroughputConfig.model_fields)
    base = resolve(config())
    same = [config(device_name=device_name(CPU)), config({"runs": "elsewhere", "study": "s", "rerun": True})]
    assert {resolve(each).identity for each in same} == {base.identity}
    others = [resolve(config(**{name: value})).identity for name, value in OTHER.items()]
    others.append(resolve(config({"mixer": {"name": "mamba"}})).identity)
    assert len({base.identity, *others}) == 1 + len(others)
    read = resolve(config(kind="prefill")).identity
    for name in ("generate", "temperature"):  # of no effect on reading
        assert resolve(config(kind="prefill", **{name: OTHER[name]})).identity == read
    assert resolve(config()).settings["throughput.device_name"] == device_name(CPU)


def test_a_job_says_on_which_device_and_another_refuses(tmp_path):
    (job,) = [{**config(), "members": [{"device_name": "a large GPU"}]}]
    (run,) = runs_of(job)
    assert run.identity == resolve(config(device_name="a large GPU")).identity != resolve(config()).identity
    assert run.member == {"device_name": "a large GPU"}
    with pytest.raises(SettingError, match=r"throughput\.device_name is 'a large GPU': the device here is "):
        perform([run], ExecutionConfig(runs=str(tmp_path), device="cpu"), StopRequest())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 0}, "throughput.batch_size is 0: it must be a whole number from 1, or largest"),
        ({"batch_size": "most"}, "throughput.batch_size is 'most': it must be a whole number from 1, or largest"),
        ({"batch_size": True}, "throughput.batch_size is True: it must be a whole number from 1, or largest"),
        ({"batch_size": "largest"}, "throughput.batch_size is 'largest': it needs a GPU, "),
        ({"kind": "both"}, "throughput.kind is 'both': it should be 'prefill' or 'decode'"),
        ({"dtype": "int8"}, "throughput.dtype is 'int8': it should be "),
        ({"temperature": -1}, "throughput.temperature is -1: it should be greater than or equal to 0"),
        ({"generat": 3}, "throughput.generat is 3: there is no such setting; did you mean generate?"),
    ],
)
def test_a_mistake_is_said_in_a_sentence(changes, sentence):
    with pytest.raises((SettingErrors, SettingError)) as raised:
        resolve(config(**changes))
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_the_record_is_like_any_other(kind, tmp_path):
    """In the dtypes that are asked for, and with the numbers that belong together."""
    asked = config({"study": "mine"}, kind=kind, dtype="bfloat16", state_dtype="float32", temperature=1.0)
    (record,) = carry_out(tmp_path, asked, study="mine")
    assert (record["status"], record["study"], record["family"]) == ("completed", "mine", "attention")
    assert set(record) == {"identity", "study", "status", "reason", "family", "config"} | {
        "metrics",
        "slices",
        "state",
        "cost",
        "provenance",
    }
    metrics, steps, tokens = record["metrics"], *((2, 27) if kind == "prefill" else (8, 3))
    assert metrics["tokens_per_second"] * metrics["seconds_p50"] == pytest.approx(tokens)
    assert metrics["floor_fraction"] * metrics["seconds_p50"] == pytest.approx(metrics["floor_seconds"])
    least = Floor(metrics["bytes_moved"], metrics["flops"])
    can = Rates(metrics["bandwidth_bytes_per_second"], metrics["matmul_flops_per_second"])
    assert least.seconds(can) == pytest.approx(metrics["floor_seconds"])
    ordered = [metrics[f"seconds_{name}"] for name in ("min", "p50", "p95", "p99", "max")]
    assert ordered == sorted(ordered)
    assert record["cost"]["tokens"] == steps * tokens
    assert (metrics["batch_size"], metrics["cuda_graph"], metrics["energy_joules_per_token"]) == (3, False, None)
    assert metrics["weight_bytes"] == 2 * record["cost"]["parameters"]
    assert (record["state"]["length"], record["state"]["dtype"]) == (9 if kind == "prefill" else 13, "float32")
    assert record["provenance"]["device"] == device_name(CPU) == record["config"]["throughput.device_name"]


def test_what_has_a_record_is_not_measured_again(tmp_path):
    (first,) = carry_out(tmp_path, config())
    (second,) = carry_out(tmp_path, config())
    assert second == first
    carry_out(tmp_path, config(), rerun=True)
    assert len(list(tmp_path.glob("*/earlier/*.result.json"))) == 1


def test_a_stop_leaves_nothing_half_done(tmp_path):
    stop = StopRequest(deadline=0)
    run = resolve(config())
    with pytest.raises(Stopped):
        perform([run], ExecutionConfig(runs=str(tmp_path), device="cpu"), stop)
    assert list(tmp_path.glob("*/result.json")) == []
    assert carry_out(tmp_path, config())[0]["status"] == "completed"


def in_a_recording():
    """How an error of memory comes out of the recording of a graph."""
    try:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    finally:
        raise RuntimeError("the recording failed")


def bug():
    raise ArithmeticError("no speed today\nin two lines")


@pytest.mark.parametrize(
    ("fails", "status", "reason"),
    [
        (in_a_recording, "out_of_memory", "RuntimeError: the recording failed"),
        (bug, "failed", "ArithmeticError: no speed today"),
    ],
)
def test_a_measurement_that_fails_has_a_record_and_disturbs_no_other(fails, status, reason, monkeypatch, tmp_path):
    real = execute.measure

    def measure(run, device, stop):
        return fails() if run.throughput.batch_size == 3 else real(run, device, stop)

    monkeypatch.setattr(execute, "measure", measure)
    bad, good = carry_out(tmp_path, config(), config(batch_size=4))
    assert (bad["status"], bad["reason"], good["status"]) == (status, reason, "completed")
    assert "Traceback" in (tmp_path / bad["identity"] / "error.txt").read_text()
    assert not out_of_memory(ValueError("other"))


def test_a_model_of_transformers_is_measured_as_it_is(tmp_path):
    transformers = pytest.importorskip("transformers")
    settings = {"vocab_size": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 64}
    transformers.GPT2Config(**settings).save_pretrained(tmp_path / "gpt2")
    model = {"model": {"name": str(tmp_path / "gpt2"), "pretrained": False}}
    for kind in ("prefill", "decode"):
        (record,) = carry_out(tmp_path / "runs", config(model, kind=kind))
        assert (record["status"], record["reason"], record["family"]) == ("completed", None, "gpt2")
        assert record["metrics"]["cuda_graph"] is False
        assert record["state"]["bytes"] == 2 * 2 * 8 * 4 * record["state"]["length"]
    with pytest.raises(
        SettingErrors, match="state_dtype is 'bfloat16': a cache of transformers has the dtype of the w"
    ):
        resolve(config(model, state_dtype="bfloat16"))


def test_measurements_have_the_device_to_themselves():
    assert execution_of({**config(), "sweep": {"alone": True}}).sweep.alone
    assert yaml.safe_load((CONFIGURATION / "throughput.yaml").read_text())["sweep"]["alone"] is True
    assert len(places("cpu", workers=5, alone=True)) == len(places("cpu", alone=True)) == 1


SIZES = {"360m": (300e6, 430e6), "1b": (1.1e9, 1.6e9)}


PUBLISHED = sorted(path for size in SIZES for path in (CONFIGURATION / "model").glob(f"*_{size}.yaml"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_model_that_is_named_by_its_size_has_it(path):
    run = resolve(config({"model": yaml.safe_load(path.read_text())}, vocab_size=50264))
    with torch.device("meta"):
        model = build_model(run.model)
    size = path.stem.rpartition("_")[2]
    least, most = SIZES[size]
    assert least < sum(p.numel() for p in model.parameters()) < most
    if "based" in path.stem:
        assert not [name for name, _ in model.named_parameters() if name.endswith("proj.bias")]
        first = [i for i, name in enumerate(model.mixer_names) if name == "linear_attention"]
        assert [i for i, name in enumerate(model.mixer_names) if name == "sliding_window"] == [i + 1 for i in first]
        assert (len(model.mixer_names), first[:5]) == ({"360m": 27, "1b": 36}[size], [1, 6, 11, 16, 21])
