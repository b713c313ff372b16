"""A run is named by every setting that can change its result, and by nothing else."""

import itertools

import hydra
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.mixers import ALL_MIXERS
from models.settings import SettingErrors, schema
from recallbench.__main__ import CONFIGURATION
from recallbench.composition import plain
from recallbench.execution import ExecutionConfig
from recallbench.recall.evaluation import TASKS as EVALUATIONS
from recallbench.run import PARTS, TrainConfig, execution_of, resolve, runs_of
from recallbench.tasks import TASKS

DEFAULT = "d98bf315220b81f1"
SMALL = "952c01382647f921"
HYBRID = "6c0899630aafe0b0"
"""Identities fixed for good: were one to change, every earlier record of such a run would be lost to it."""


def compose(*overrides):
    with hydra.initialize_config_dir(str(CONFIGURATION), version_base="1.3"):
        return plain(hydra.compose("config", overrides=list(overrides)))


def leaves(tree, path=()):
    """Each setting as (path, value); a list is one setting."""
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [leaf for key, value in tree.items() for leaf in leaves(value, (*path, key))]


def changed(tree, path, value):
    key, *rest = path
    return {**tree, key: changed(tree[key], rest, value) if rest else value}


def words(tree):
    """Every word that a JSON schema lists as a choice."""
    if isinstance(tree, dict):
        own = [word for word in tree.get("enum", []) if isinstance(word, str)]
        return own + [word for value in tree.values() for word in words(value)]
    return [word for value in tree for word in words(value)] if isinstance(tree, list) else []


WORDS = ["layer", "rms", "taylor", "elu", "bfloat16", "something else"]
for entry in (*ALL_MIXERS.values(), *TASKS.values()):
    WORDS += words(schema(entry).model_json_schema())
LISTS = [["mixer"], ["short_conv", "mixer", "mixer"], [{"name": "attention", "num_heads": 2}, "mixer"]]


def others(value):
    """Values of the same kind, as far as can be told."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 2 * value, 4 * value, value + 3]
    if isinstance(value, float):
        return [value / 2]
    if isinstance(value, str):
        return WORDS
    if isinstance(value, list):
        return LISTS
    return [1, 2, 4, 0.5, *WORDS]


def identity(config):
    """The identity of a configuration that works, or else None."""
    try:
        return resolve(config).identity
    except SettingErrors:
        return None


TOLD_APART = {"task": {"name", "train", "test"}, "model": {"family"}, "mixer": {"name", "layer", "options"}}
"""Settings that the tests below change together with others, and a label, which changes nothing."""


@pytest.mark.parametrize("mixer", sorted(p.stem for p in (CONFIGURATION / "mixer").iterdir()))
def test_every_setting_changes_the_identity(mixer):
    base = compose(f"mixer={mixer}")
    parts = {part: base[part] for part in PARTS if part != "members"}
    tried = [leaf for leaf in leaves(parts) if leaf[0][-1] not in TOLD_APART.get(leaf[0][0], ())]
    seen = {resolve(base).identity: "nothing"}
    for path, value in tried:
        name = ".".join(path)
        found = [i for other in others(value) if other != value and (i := identity(changed(base, path, other)))]
        assert found, f"no other value of {name} works: teach `others` one"
        for one in found:
            assert one not in seen or seen[one] == name, f"{name} and {seen[one]} have one identity"
            seen[one] = name
    missing = set(schema(ALL_MIXERS[mixer]).model_fields) - {"d_model"} - set(base["mixer"])
    assert not missing, f"conf/mixer/{mixer}.yaml lacks {missing}"


def test_segments_change_the_identity():
    base = compose("task=mqar_based")
    seen = {resolve(base).identity}
    for split in ("train", "test"):
        for key, other in (("sequence_length", 2048), ("num_kv_pairs", 3), ("num_examples", 7)):
            segments = base["task"][split]
            edited = [{**segments[0], key: other}, *segments[1:]]
            seen.add(resolve(changed(base, ("task", split), edited)).identity)
        seen.add(resolve(changed(base, ("task", split), base["task"][split][:-1])).identity)
        seen.add(resolve(changed(base, ("task", split), base["task"][split][::-1])).identity)
    assert len(seen) == 1 + 2 * 5


EXECUTION = {
    "runs": "elsewhere",
    "study": "mine",
    "device": "cpu",
    "logger": {"name": "wandb", "project": "other", "entity": "us"},
    "checkpoint_seconds": 1,
    "rerun": True,
    "sweep": {"wait": True, "runs_per_task": 8, "time_budget": "9min"},
}


def test_where_and_how_a_run_is_carried_out_changes_nothing():
    assert set(EXECUTION) == set(ExecutionConfig.model_fields)
    base = compose()
    for config in ({**base, **EXECUTION}, *({**base, name: value} for name, value in EXECUTION.items())):
        assert execution_of(config) != execution_of(base)
        assert resolve(config).identity == resolve(base).identity
        assert resolve(config).settings == resolve(base).settings
    assert resolve(changed(base, ("model", "family"), "a label")).identity == resolve(base).identity


def defaults(target):
    fields = schema(target).model_fields if not hasattr(target, "model_fields") else target.model_fields
    return {name: field.default for name, field in fields.items() if name != "d_model"}


@settings(max_examples=60, derandomize=True)
@given(mixer=st.sampled_from(list(ALL_MIXERS)), data=st.data())
def test_a_default_that_is_given_is_a_default_left_out(mixer, data, tiny):
    base = tiny({"mixer": {"name": mixer}})
    of = {
        "mixer": defaults(ALL_MIXERS[mixer]),
        "task": defaults(TASKS["mqar"]),
        "train": defaults(TrainConfig),
        "model": {"repeats": 1, "mlp_expand": 0, "norm": "layer", "tie_embeddings": True, "family": None},
    }
    config = base
    for part, values in of.items():
        given_too = data.draw(st.sets(st.sampled_from(sorted(values)))) if values else ()
        config = {**config, part: {**{name: values[name] for name in given_too}, **config[part]}}
    shuffled = {part: config[part] for part in data.draw(st.permutations(list(config)))}
    assert resolve(shuffled).identity == resolve(base).identity
    assert resolve(shuffled).settings == resolve(base).settings


@pytest.mark.parametrize("mixer", sorted(p.stem for p in (CONFIGURATION / "mixer").iterdir()))
def test_a_mixers_yaml_holds_its_defaults(mixer):
    base = compose(f"mixer={mixer}")
    assert resolve(base).identity == resolve({**base, "mixer": {"name": base["mixer"]["name"]}}).identity
    assert base["mixer"]["name"] == mixer


def test_every_mixer_and_every_task_can_be_chosen_at_the_command_line():
    assert {path.stem for path in (CONFIGURATION / "mixer").iterdir()} == set(ALL_MIXERS)
    names = {path.stem for path in (CONFIGURATION / "task").iterdir()}
    assert names > EVALUATIONS.keys()
    names -= {"lm", *EVALUATIONS}  # which are no recall tasks
    assert {compose(f"task={name}")["task"]["name"] for name in names} == set(TASKS)


def test_one_meaning_has_one_identity(tiny):
    same = [
        tiny({"train.learning_rate": 1, "model.mlp_expand": 2}),
        tiny({"train.learning_rate": 1.0, "model.mlp_expand": 2.0}),
        tiny({"train.learning_rate": 1, "model.mlp_expand": 2, "model.layers": ["short_conv", "attention"]}),
        tiny(
            {
                "train.learning_rate": 1,
                "model.mlp_expand": 2,
                "model.layers": [{"name": "short_conv", "kernel_size": 3}, {"name": "attention"}],
                "mixer": {"name": "based", "feature_dim": 4},  # of a layer that is not there
            }
        ),
    ]
    assert len({resolve(config).identity for config in same}) == 1


@pytest.mark.parametrize("overrides", [[], ["mixer=h3", "model.d_model=32"], ["task=mqar_based", "seed=4"]])
def test_the_settings_of_a_record_name_its_run(overrides):
    run = resolve(compose(*overrides))
    nested = {"members": []}
    for name, value in run.settings.items():
        part, _, rest = name.partition(".")
        if rest:
            nested.setdefault(part, {})[rest] = value
        else:
            nested[part] = value
    del nested["model"]["vocab_size"]  # the task's
    again = resolve(nested)
    assert (again.identity, again.family) == (run.identity, run.family)
    own = {name: value for name, value in run.settings.items() if not name.startswith("mixer.")}
    assert again.settings == own  # `model.layers` says it all, so that none is the mixer under study any more


def test_identities_stay_as_they_are():
    assert resolve(compose()).identity == DEFAULT
    small = ["task.vocab_size=64", "task.num_examples=128", "model.d_model=16", "train.learning_rate=0.003", "seed=3"]
    assert resolve(compose("mixer=attention", *small)).identity == SMALL
    hybrid = ["task=mqar_based", "model=based", "model.mlp_expand=2", "model.norm=rms", "mixer.window_size=64"]
    assert resolve(compose(*hybrid)).identity == HYBRID


def test_members_of_a_job_are_the_runs_alone(tiny):
    pairs = list(itertools.product([0.1, 0.01], [0, 7]))
    job = tiny({"members": [{"learning_rate": rate, "seed": seed} for rate, seed in pairs]})
    alone = [resolve(tiny({"train.learning_rate": rate, "seed": seed})) for rate, seed in pairs]
    assert [run.identity for run in runs_of(job)] == [run.identity for run in alone]
    assert len({run.identity for run in alone}) == 4
    assert len({run.group for run in alone}) == 1
    assert [run.identity for run in runs_of(tiny())] == [resolve(tiny()).identity]
