"""Architecture points: what they group, which learning rate they take, what they are called."""

import math

import pytest

from analysis import at_best_learning_rate, by_slice, load, points


def test_the_learning_rate_is_chosen_by_validation_and_reported_on_test(record, write):
    runs = [
        record(accuracy=0.95, validation=0.80, learning_rate=1e-3),
        record(accuracy=0.90, validation=0.85, learning_rate=3e-3),
    ]
    (point,) = points(load(write(runs))).to_dict("records")
    assert point["train.learning_rate"] == 3e-3
    assert point["accuracy"] == 0.90
    assert point["validation_accuracy"] == 0.85


def test_the_choice_is_by_the_mean_over_seeds(record, write):
    lucky = [record(accuracy=a, seed=s, learning_rate=1e-3) for s, a in enumerate((0.99, 0.1, 0.2))]
    steady = [record(accuracy=a, seed=s, learning_rate=3e-3) for s, a in enumerate((0.6, 0.7, 0.8))]
    runs = load(write([*lucky, *steady]))
    (point,) = points(runs).to_dict("records")
    assert point["train.learning_rate"] == 3e-3
    assert point["accuracy"] == pytest.approx(0.7)
    assert (point["accuracy_min"], point["accuracy_max"]) == (0.6, 0.8)
    assert point["accuracy_std"] == pytest.approx(0.1)
    assert point["seeds"] == 3
    assert sorted(at_best_learning_rate(runs)["accuracy"]) == [0.6, 0.7, 0.8]


def test_rates_are_compared_on_the_seeds_that_all_of_them_have(record, write):
    """More seeds at the rate that the first one chose, as is cheap, do not choose another."""
    chosen = [record(accuracy=a, seed=s, learning_rate=1e-3) for s, a in enumerate((0.9, 0.5, 0.6))]
    other = [record(accuracy=0.8, learning_rate=3e-3)]
    (point,) = points(load(write([*chosen, *other]))).to_dict("records")
    assert (point["train.learning_rate"], point["seeds"]) == (1e-3, 3)
    assert point["accuracy"] == pytest.approx(2 / 3)
    chosen, apart = (
        [record("mamba", accuracy=a, seed=s, learning_rate=rate) for s, a in seeds]
        for rate, seeds in ((1e-3, enumerate((0.9, 0.5, 0.6))), (3e-3, [(3, 0.7), (4, 0.7)]))
    )
    (point,) = points(load(write([*chosen, *apart])).query("family == 'mamba'")).to_dict("records")
    assert (point["train.learning_rate"], point["seeds"]) == (3e-3, 2)


def test_what_changes_no_result_makes_no_point(record, write):
    """The same training on another machine: cut up otherwise, its corpus elsewhere."""
    here, there = (record(accuracy=a, learning_rate=rate) for a, rate in ((0.8, 1e-3), (0.9, 3e-3)))
    here["config"] |= {"train.micro_batch_size": 4, "data.path": "corpus/*.jsonl", "corpus.digest": "0f"}
    there["config"] |= {"train.micro_batch_size": None, "data.path": "/scratch/a.jsonl", "corpus.digest": "0f"}
    (point,) = points(load(write([here, there]))).to_dict("records")
    assert (point["train.learning_rate"], point["label"]) == (3e-3, "")
    there["config"]["corpus.digest"] = "f0"
    assert len(points(load(write([here, there])))) == 2


@pytest.mark.parametrize("status", ["diverged", "failed", "out_of_memory"])
def test_runs_that_did_not_complete_do_not_win(record, write, status):
    runs = [
        record(status=status, learning_rate=1e-2, accuracy=1.0),
        record(accuracy=0.3, learning_rate=1e-3),
    ]
    (point,) = points(load(write(runs))).to_dict("records")
    assert (point["train.learning_rate"], point["accuracy"], point["seeds"]) == (1e-3, 0.3, 1)


def test_a_diverged_seed_counts_against_its_learning_rate(record, write):
    risky = [
        record(accuracy=0.9, learning_rate=1e-2, seed=0),
        record(status="diverged", learning_rate=1e-2, seed=1),
    ]
    safe = [record(accuracy=0.6, learning_rate=1e-3, seed=seed) for seed in (0, 1)]
    (point,) = points(load(write([*risky, *safe]))).to_dict("records")
    assert (point["train.learning_rate"], point["diverged"]) == (1e-3, 0)
    (point,) = points(load(write([*risky]), study="quick").query("`train.learning_rate` > 5e-3"))[
        ["seeds", "diverged"]
    ].to_dict("records")
    assert point == {"seeds": 1, "diverged": 1}


def test_a_point_without_a_completed_run_stays(record, write):
    runs = [record(accuracy=0.5), record("mamba", status="out_of_memory", state_bytes=1 << 20)]
    table = points(load(write(runs))).set_index("family")
    assert math.isnan(table.loc["mamba", "accuracy"])
    assert table.loc["mamba", "seeds"] == 0
    assert table.loc["mamba", "state.bytes"] == 1 << 20
    assert math.isnan(points(load(write(runs)).query("family == 'mamba'"))["accuracy"].iloc[0])


def test_list_settings_tell_points_apart(record, write):
    short, long = record(seed=0), record(seed=1)
    long["config"]["task.train"] = [[512, 64, 100_000]]
    assert len(points(load(write([short, long])))) == 2


def test_labels_name_what_differs_within_a_family(record, write, study):
    table = points(load(write(study())))
    named = table.groupby("family")["label"].agg(set)
    assert named["attention"] == {""}
    assert named["sliding_window"] == {"W=4", "W=8", "W=16", "W=32", "W=64"}
    assert {"taylor K=8", "elu K=16"} <= named["linear_attention"]
    assert {"K=4 W=8", "K=16 W=16"} <= named["based"]
    assert not table.duplicated(["family", "label"]).any()


def test_labels_fall_back_on_the_setting_itself(record, write):
    runs = [record("mamba", d_state=n, gated=gated) for n, gated in ((8, True), (0.5, True), (0.5, False))]
    assert set(points(load(write(runs)))["label"]) == {
        "d_state=8 gated=True",
        "d_state=0.5 gated=True",
        "d_state=0.5 gated=False",
    }


def test_labels_leave_out_what_tells_no_more_apart(record, write):
    runs = [record("mamba", d_state=8, gated=True), record("mamba", d_state=4, gated=False)]
    assert set(points(load(write(runs)))["label"]) == {"d_state=8", "d_state=4"}


def test_labels_reach_into_layers(record, write):
    runs = [record(feature_dim=8, seed=seed) for seed in (0, 1)]
    for run, width in zip(runs, (4, 8), strict=True):
        run["config"]["model.layers"][1]["window_size"] = width
    assert set(points(load(write(runs)))["label"]) == {"W=4", "W=8"}


def test_the_learning_rate_is_never_chosen_by_what_is_scored(record, write):
    """Not even by the slice that is reported: one rate an architecture, by validation over all slices."""
    runs = [
        record(accuracy=0.9, validation=0.5, learning_rate=1e-3, slices={4: 1.0, 64: 0.9}),
        record(accuracy=0.6, validation=0.7, learning_rate=3e-3, slices={4: 0.9, 64: 0.3}),
    ]
    runs = load(write(runs))
    assert by_slice(at_best_learning_rate(runs))["accuracy"].tolist() == [0.9, 0.3]
    with pytest.raises(ValueError, match="chosen_by is 'accuracy'"):
        points(runs, chosen_by="accuracy")
    with pytest.raises(ValueError, match="'validation_perplexity' is not there"):
        points(runs, chosen_by="validation_perplexity")


def test_a_loss_chooses_the_rate_with_less(record, write):
    runs = [record(learning_rate=rate) for rate in (1e-3, 3e-3, 1e-2)]
    for run, loss in zip(runs, (2.0, 1.0, 0.5), strict=True):
        run["metrics"] |= {"validation_loss": loss, "ar_perplexity": math.exp(loss)}
    diverged = record(learning_rate=1e-2, seed=1, status="diverged")
    (row,) = points(load(write([*runs, diverged])), chosen_by="validation_loss").to_dict("records")
    assert (row["train.learning_rate"], row["ar_perplexity"]) == (3e-3, pytest.approx(math.e))
    assert (row["state.bits"], row["cost.seconds"]) == (8 * row["state.bytes"], 12.5)
