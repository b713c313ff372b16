"""Settings of the tasks with one axis: their YAML and their defaults are one, and what cannot be is said."""

import hydra
import pytest

from models.settings import SettingError, schema
from recallbench.__main__ import CONFIGURATION
from recallbench.composition import plain
from recallbench.one_axis import OneAxis
from recallbench.run import resolve
from recallbench.tasks import TASKS


def compose(*overrides):
    with hydra.initialize_config_dir(str(CONFIGURATION), version_base="1.3"):
        return plain(hydra.compose("config", overrides=list(overrides)))


@pytest.mark.parametrize("name", [name for name, kind in TASKS.items() if issubclass(kind, OneAxis)])
def test_a_tasks_yaml_holds_its_defaults_and_one_value_may_stand_alone(name):
    config = compose(f"task={name}")
    assert list(config["task"]) == ["name", *schema(TASKS[name]).model_fields]
    assert resolve(config).identity == resolve({**config, "task": {"name": name}}).identity
    axis, (first, *_) = TASKS[name].axis, TASKS[name]().train
    alone, listed = (resolve(compose(f"task={name}", f"task.{axis}={given}")) for given in (first, f"[{first}]"))
    assert alone.identity == listed.identity
    assert alone.settings[f"task.{axis}"] == [first]


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        (
            "overwritten_recall",
            {"sequence_length": 20},
            "num_kv_pairs is 8: a sequence of length 20 binds and asks for at most 6 keys",
        ),
        (
            "overwritten_recall",
            {"num_bindings": (8, 7)},
            "num_bindings is 7: each of the 8 keys is bound at least once",
        ),
        (
            "overwritten_recall",
            {"test_num_bindings": (29,)},
            "test_num_bindings is 29: beside 8 questions, a sequence of length 64 holds at most 28 bindings",
        ),
        (
            "overwritten_recall",
            {"vocab_size": 46},
            "vocab_size is 46: 8 keys and 24 values need a vocabulary of at least 47 tokens",
        ),
        ("two_hop", {"hops": (1, 5)}, "hops is 5: it must divide num_kv_pairs = 12, for the chains to be whole"),
        (
            "two_hop",
            {"sequence_length": 59},
            "sequence_length is 59: 12 pairs and the questions of 12 chains need at least 60",
        ),
        ("two_hop", {"vocab_size": 24}, "vocab_size is 24: 12 chains of 2 tokens need at least 25"),
        ("two_hop", {"test_hops": (2, 2)}, "test_hops is [2, 2]: it must not name a value twice"),
        ("ngram_copy", {"span": 33}, "span is 33: it must fit into half the sequence, 32 tokens"),
        ("ngram_copy", {"ngram": (8,)}, "ngram is 8: with its continuation it must fit into a span of 8 tokens"),
        (
            "ngram_copy",
            {"test_ngram": (7,), "vocab_size": 1000},
            "test_ngram is 7: n-grams of a vocabulary of 1000 must be told apart by 63 bits",
        ),
        (
            "noisy_recall",
            {"num_kv_pairs": (17,)},
            "num_kv_pairs is 17: a sequence of length 128 holds at most 16 pairs of such length twice",
        ),
        (
            "noisy_recall",
            {"vocab_size": 8, "num_kv_pairs": (5,)},
            "vocab_size is 8: words of 2 letters out of 2 (a third of it) are fewer than 5",
        ),
        (
            "noisy_recall",
            {"key_tokens": 11, "num_kv_pairs": (1,)},
            "key_tokens is 11: words of a vocabulary of 64 must be told apart by 63 bits",
        ),
        ("needle", {"num_needles": 128}, "num_needles is 128: a sequence of length 256 holds at most 127 needles"),
        (
            "needle",
            {"num_needles": 9, "vocab_size": 26},
            "vocab_size is 26: 9 needles need at least 27 tokens, a third of them keys",
        ),
        ("needle", {"test_depth": (80,)}, "test_depth is 80: 25 percent from there on must end within the text"),
        (
            "needle",
            {"sequence_length": 6, "depth": (55,), "depth_range": 10},
            "sequence_length is 6: no place of 4 is at 55 to 65 percent",
        ),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(name, options, sentence):
    with pytest.raises(SettingError) as raised:
        TASKS[name](**options)
    assert str(raised.value) == sentence
