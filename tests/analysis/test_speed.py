"""Speed joined to recall."""

import math

import pytest

from analysis import frontier, load, points, with_speed


def measured(record, *, kind="decode", speed=100.0, batch_size=8, **settings):
    run = record(**settings)
    run["identity"] = f"{kind}-{batch_size}-{run['identity']}"
    config = {name: v for name, v in run["config"].items() if name.startswith(("model.", "mixer."))}
    run["config"] = {**config, "model.vocab_size": 50264, "throughput.kind": kind, "throughput.batch_size": batch_size}
    run["metrics"], run["slices"] = {"tokens_per_second": speed}, None
    return run


def test_a_frontier_over_state_speed_and_accuracy(record, write):
    sizes = [(4, 0.5, 300.0), (8, 0.6, 200.0), (16, 0.6, 100.0)]
    trained = [record(accuracy=a, feature_dim=k, state_bytes=100 * k) for k, a, _ in sizes]
    speeds = [measured(record, speed=s, feature_dim=k) for k, _, s in sizes]
    runs = load(write([*trained, *speeds]))
    joined, unmatched = with_speed(points(runs), runs)
    assert joined["decode_tokens_per_second"].tolist() == [300, 200, 100]
    assert joined["prefill_tokens_per_second"].isna().all()
    assert set(unmatched["kind"]) == {"prefill"}
    assert frontier(joined, ["state.bytes", "decode_tokens_per_second"]).tolist() == [True, True, False]


def test_what_has_no_partner_is_told_with_the_nearest(record, write):
    trained = [record(feature_dim=4), record("mamba", d_state=8)]
    runs = load(write([*trained, *(measured(record, kind=k, feature_dim=8) for k in ("decode", "prefill"))]))
    joined, unmatched = with_speed(points(runs), runs)
    assert all(map(math.isnan, joined["decode_tokens_per_second"]))
    rows = unmatched[unmatched["kind"] == "decode"].set_index(["side", "family"])["reason"]
    assert rows["points", "based"] == "the nearest differs in mixer.feature_dim, model.layers"
    assert rows["points", "mamba"] == "none of this family on the other side"
    assert rows["measurements", "based"] == "the nearest differs in mixer.feature_dim, model.layers"


def test_conditions_must_be_one(record, write):
    runs = load(write([record(), measured(record, batch_size=1), measured(record, batch_size=8)]))
    with pytest.raises(ValueError, match=r"several throughput.batch_size \(1, 8\)"):
        with_speed(points(runs), runs)
    with pytest.raises(ValueError, match=r"no completed run of python -m recallbench.throughput"):
        with_speed(points(runs), runs[runs["throughput.kind"].isna()])
