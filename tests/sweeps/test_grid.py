"""A study is the union of its grids' products, whatever the grids."""

import itertools

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given, settings
from hypothesis import strategies as st

from models.settings import SettingError
from recallbench.__main__ import CONFIGURATION
from sweeps.grid import expand


@pytest.fixture(scope="module")
def loader():
    with hydra.initialize_config_dir(str(CONFIGURATION), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


names = st.sampled_from(["seed", "task.seed", "train.epochs", "train.batch_size", "model.d_model"])
axes = st.dictionaries(names, st.lists(st.integers(0, 4), min_size=1, max_size=3), max_size=3)


@settings(max_examples=100, derandomize=True)
@given(params=axes, grids=st.lists(axes, max_size=3), given_axes=axes)
def test_points_are_a_union_of_products(params, grids, given_axes, loader):
    arguments = [f"{key}={','.join(map(str, values))}" for key, values in given_axes.items()]
    points = expand(arguments, params, grids, loader)

    expected = set()
    for grid in grids or [{}]:
        table = {**params, **grid, **given_axes}  # the command line replaces a grid's axis, a grid's a shared one
        for values in itertools.product(*table.values()):
            expected.add(frozenset(f"{key}={value}" for key, value in zip(table, values, strict=True)))
    assert {frozenset(point) for point in points} == expected
    assert len(points) == len(set(points))


def test_points_come_in_the_order_of_the_grids_and_of_their_values(loader):
    points = expand(["seed=2,1"], {"task.seed": [5]}, [{"train.epochs": [3, 1]}, {"train.epochs": 9}], loader)
    assert points == [
        ("seed=2", "task.seed=5", "train.epochs=3"),
        ("seed=2", "task.seed=5", "train.epochs=1"),
        ("seed=1", "task.seed=5", "train.epochs=3"),
        ("seed=1", "task.seed=5", "train.epochs=1"),
        ("seed=2", "task.seed=5", "train.epochs=9"),
        ("seed=1", "task.seed=5", "train.epochs=9"),
    ]


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        (7, [7]),
        ("word", ["word"]),
        (None, [None]),
        ("1,2", [1, 2]),
        ("range(1,4)", [1, 2, 3]),
        (["attention", "based"], ["attention", "based"]),
        ([None, 0.5], [None, 0.5]),
        ([True, False], [True, False]),
        ([1e-5, 3e-05, 100_000.0], [1e-5, 3e-5, 1e5]),
        ([["mixer"], ["short_conv", "mixer"]], [["mixer"], ["short_conv", "mixer"]]),
        ([["mixer", {"name": "attention", "num_heads": 2, "num_kv_heads": None}]],) * 2,
        ([[{"sequence_length": 64, "num_kv_pairs": 4}], None], [[{"sequence_length": 64, "num_kv_pairs": 4}], None]),
    ],
    ids=repr,
)
def test_an_axis_of_a_study_means_what_its_yaml_says(axis, values, loader):
    points = expand([], {"x": axis}, [], loader)
    parsed = hydra.core.override_parser.overrides_parser.OverridesParser.create().parse_overrides(
        [override for (override,) in points]
    )
    assert [override.value() for override in parsed] == values


def test_the_options_of_a_group_are_an_axis(loader):
    points = expand(["mixer=glob(*,exclude=[hyena,h3])"], {}, [], loader)
    chosen = {path.stem for path in (CONFIGURATION / "mixer").iterdir()} - {"hyena", "h3"}
    assert {override for (override,) in points} == {f"mixer={name}" for name in chosen}


def test_an_axis_without_values_is_said(loader):
    with pytest.raises(SettingError, match=r"^train.epochs is \[\]: an axis needs at least one value$"):
        expand([], {"train.epochs": []}, [], loader)
