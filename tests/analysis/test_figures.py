"""Every figure in the folder: it draws, and what it says can be read."""

import functools
import io
import json
import os
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.text import Text
from pandas import DataFrame
from PIL import Image

from analysis import figures, frontier, load, points
from analysis.figures import (
    NotEnough,
    accuracy_by_kv_pairs,
    accuracy_by_state_dtype,
    real_recall_by_state,
    recall_by_state,
    recall_by_throughput,
    throughput_by_batch,
)
from analysis.lines import ended_lines
from analysis.small_multiples import small_multiples
from analysis.style import COLUMN_WIDTH, save

FIGURES = figures.discover()

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 2.5
"""Root mean square of channels from 0 to 255; the few colours in which the pictures are kept make up to 2."""

AXES = {
    "accuracy_by_sequence_length": ("sequence_length", "accuracy"),
    "feature_maps": ("state.bytes", "accuracy"),
    "perplexity_by_state": ("state.bytes", "ar_perplexity", "other_perplexity"),
    "real_recall_by_state": ("state.bytes", "accuracy"),
    "recall_by_throughput": ("tokens_per_second", "accuracy", "state.bytes"),
    "throughput_by_batch": ("batch_size", "tokens_per_second", "floor_tokens_per_second"),
    "throughput_by_length": ("throughput.prompt_length", "tokens_per_second", "floor_tokens_per_second"),
    "training_cost": ("seconds", "accuracy"),
    "state_by_length": ("state.length", "state.bytes"),
}

every_figure = pytest.mark.parametrize("name", list(FIGURES))


@pytest.fixture(scope="module")
def drawn_from(records_for, tmp_path_factory):
    """Each figure by name and number of seeds, from records that support it, drawn once."""

    @functools.cache
    def draw(name, seeds):
        runs = write_to(tmp_path_factory.mktemp(name), records_for(name, seeds))
        return runs, FIGURES[name].draw(runs)

    return draw


def write_to(root, records):
    for record in records:
        (root / record["identity"]).mkdir()
        (root / record["identity"] / "result.json").write_text(json.dumps(record))
    return load(root)


@pytest.fixture(params=[1, 3], ids=["one seed", "three seeds"])
def runs(request, study, write):
    return load(write(study(seeds=request.param)))


def texts(drawn):
    """The texts that a figure shows, with their boxes in pixels."""
    drawn.draw_without_rendering()
    shown = [text for text in drawn.findobj(Text) if text.get_text() and text.get_visible()]
    return [(text, text.get_window_extent()) for text in shown]


def plotted(drawn):
    """The points of all lines that a figure shows."""
    return {
        (float(x), float(y))
        for axes in drawn.axes
        for line in axes.lines
        for x, y in np.broadcast(line.get_xdata(), line.get_ydata())
    }


def test_figures_are_discovered_in_their_folder():
    assert {"accuracy_by_kv_pairs", "recall_by_state"} <= set(FIGURES)
    assert all(figure.__doc__ for figure in FIGURES.values())


@every_figure
@pytest.mark.parametrize("seeds", [1, 3])
def test_what_a_figure_says_can_be_read(name, seeds, drawn_from):
    _, drawn = drawn_from(name, seeds)
    shown = texts(drawn)
    assert len(shown) > 10
    overlapping = [
        (a.get_text(), b.get_text())
        for (a, first), (b, second) in combinations(shown, 2)
        if first.padded(-1).overlaps(second.padded(-1))
    ]
    assert overlapping == []
    outside = [
        text.get_text() for text, box in shown if not (drawn.bbox.contains(*box.min) and drawn.bbox.contains(*box.max))
    ]
    assert outside == []
    assert drawn.get_figwidth() == COLUMN_WIDTH
    assert min(text.get_fontsize() for text, _ in shown) >= 7


@every_figure
def test_a_figure_is_as_it_was_looked_at(name, drawn_from):
    """Against a picture in `golden/`, which this makes: `GOLDEN=new python -m pytest tests/analysis -k looked_at`."""
    _, drawn = drawn_from(name, 1)
    picture, golden = io.BytesIO(), GOLDEN / f"{name}.png"
    drawn.savefig(picture, dpi=50)
    picture.seek(0)
    if os.environ.get("GOLDEN") == "new":
        GOLDEN.mkdir(exist_ok=True)
        Image.open(picture).convert("RGB").quantize(128, kmeans=2).save(golden, optimize=True)
        picture.seek(0)
    seen, expected = (255 * imread(file)[..., :3] for file in (picture, golden))
    assert seen.shape == expected.shape
    assert np.sqrt(np.mean((seen - expected) ** 2)) < TOLERANCE


@every_figure
def test_equal_figures_give_equal_files(name, drawn_from, tmp_path):
    runs, drawn = drawn_from(name, 1)
    again = FIGURES[name].draw(runs)
    for suffix in (".pdf", ".png"):
        for stem, figure in (("one", drawn), ("other", again)):
            save(figure, tmp_path / f"{stem}{suffix}")
        one, other = ((tmp_path / f"{stem}{suffix}").read_bytes() for stem in ("one", "other"))
        assert one == other
        assert b"CreationDate" not in one


@pytest.mark.parametrize("name", AXES)
def test_a_table_is_what_is_drawn(name, drawn_from):
    runs, drawn = drawn_from(name, 3)
    table = FIGURES[name].table(runs)
    x, *ys = AXES[name]
    for y in ys:
        assert set(zip(table[x].astype(float), table[y].astype(float), strict=True)) <= plotted(drawn)


@every_figure
def test_nothing_completed_is_not_enough(name, record, write):
    figure = FIGURES[name]
    runs = load(write([record(status="failed"), record("mamba", status="diverged")]))
    with pytest.raises(NotEnough):
        figure.draw(runs)
    with pytest.raises(NotEnough):
        figure.table(runs)


def test_recall_by_state_draws_its_table(runs):
    table = recall_by_state.table(runs)
    shown = plotted(recall_by_state.draw(runs))
    assert set(zip(table["state.bytes"], table["accuracy"], strict=True)) <= shown
    assert table["accuracy"].tolist() == points(runs)["accuracy"].tolist()
    assert table["frontier"].tolist() == frontier(points(runs)).tolist()
    assert 1 < table["frontier"].sum() < len(table)


def test_recall_by_state_labels_points_clear_of_all_markers(runs):
    drawn = recall_by_state.draw(runs)
    table = recall_by_state.table(runs)
    labels = [box for text, box in texts(drawn) if text in drawn.axes[0].texts]
    assert len(labels) == (table["label"] != "").sum()
    markers = drawn.axes[0].transData.transform(table[["state.bytes", "accuracy"]].to_numpy(float))
    assert not any(box.contains(x, y) for box in labels for x, y in markers)


def test_recall_by_state_says_how_state_was_measured(runs):
    label = recall_by_state.draw(runs).axes[0].get_xlabel()
    assert "64" in label
    assert "float32" in label


def test_recall_by_state_keeps_points_without_a_completed_run_in_the_table(record, write):
    runs = load(write([record(), record("mamba", status="out_of_memory")]))
    assert recall_by_state.table(runs)["family"].tolist() == ["based", "mamba"]
    recall_by_state.draw(runs)


def test_states_measured_differently_do_not_share_an_axis(record, write):
    long = record("mamba")
    long["state"]["length"] = 1024
    with pytest.raises(NotEnough, match="several lengths"):
        recall_by_state.draw(load(write([record(), long])))


def test_accuracy_by_kv_pairs_draws_its_table(runs):
    table = accuracy_by_kv_pairs.table(runs)
    drawn = accuracy_by_kv_pairs.draw(runs)
    assert set(zip(table["num_kv_pairs"], table["accuracy"], strict=True)) <= plotted(drawn)
    assert len(drawn.axes) == table["family"].nunique()
    assert len(table) == 4 * len(points(runs))


def test_accuracy_by_kv_pairs_averages_over_seeds(record, write):
    runs = [record(seed=s, slices={4: a, 8: a / 2}) for s, a in enumerate((0.6, 1.0))]
    first, second = accuracy_by_kv_pairs.table(load(write(runs))).to_dict("records")
    assert (first["num_kv_pairs"], first["accuracy"], first["seeds"]) == (4, 0.8, 2)
    assert (second["accuracy_min"], second["accuracy_max"]) == (0.3, 0.5)


def test_accuracy_by_kv_pairs_needs_slices(record, write):
    with pytest.raises(NotEnough, match="num_kv_pairs"):
        accuracy_by_kv_pairs.draw(load(write([record(slices={})])))


@pytest.mark.parametrize("name", ["accuracy_by_kv_pairs", "recall_by_state", "training_cost"])
def test_a_large_study_of_many_families_still_reads(name, record, write):
    figure = FIGURES[name]
    families = [f"mixer_{number}" for number in range(12)] + ["based", "attention", "mamba"]
    runs = [
        record(
            family,
            accuracy=0.05 * number + 0.02 * width,
            slices={n: min(1.0, (width + number) / n) for n in (4, 16, 64, 256)},
            state_bytes=1000 * (number + 1) * (width + 1),
            window_size=width,
        )
        for number, family in enumerate(families)
        for width in (1, 2, 4, 8)
    ]
    shown = texts(figure.draw(load(write(runs))))
    assert not any(first.padded(-1).overlaps(second.padded(-1)) for (_, first), (_, second) in combinations(shown, 2))


def test_the_learning_rate_of_an_evaluation_is_that_of_its_training(record, write):
    """The evaluation of the better trained run counts, though the other recalls more."""
    trained = [record(accuracy=a, learning_rate=rate) for rate, a in ((1e-3, 0.5), (3e-3, 0.9))]
    evaluated = [record(accuracy=a, learning_rate=rate) for rate, a in ((1e-3, 0.8), (3e-3, 0.6))]
    for source, run in zip(trained, evaluated, strict=True):
        run["config"] |= {"task.name": "swde", "model.run": source["identity"]}
        run["metrics"].pop("validation_accuracy")
        run["identity"] += "e"
    (point,) = real_recall_by_state.table(load(write([*trained, *evaluated]))).to_dict("records")
    assert (point["task"], point["accuracy"], point["train.learning_rate"]) == ("swde", 0.6, 3e-3)


def test_how_few_questions_were_asked_is_the_error_bar_of_recall(record, write):
    run = record(accuracy=0.3)
    run["config"] |= {"task.name": "swde"}
    run["metrics"] |= {"accuracy_low": 0.25, "accuracy_high": 0.36}
    axes = real_recall_by_state.draw(load(write([run]))).axes[0]
    (bar,) = axes.collections[0].get_segments()
    assert bar[:, 1].tolist() == [0.25, 0.36]
    assert 0.5 < axes.get_ylim()[1] < 0.6


def test_own_documents_of_several_files_are_asked_of_apart(record, write):
    runs = [record(accuracy=0.1 * n, seed=n) for n in (1, 2)]
    for run, path in zip(runs, ("a/pages.jsonl", "b/squad.jsonl"), strict=True):
        run["config"] |= {"task.name": "extraction", "task.path": path}
    found = real_recall_by_state.table(load(write(runs)))
    assert dict(zip(found["task"], found["accuracy"].round(6), strict=True)) == {
        "extraction: pages": 0.1,
        "extraction: squad": 0.2,
    }
    titles = [axes.get_title(loc="left") for axes in real_recall_by_state.draw(load(write(runs))).axes]
    assert titles == ["own documents: pages", "own documents: squad"]


def test_the_bound_of_recurrent_models_is_beside_recall_of_mqar_alone(record, write):
    """Drawn where it is near: 16 pairs of 4096 values take 16 log2 4096 bits, 24 bytes; said where it is far."""

    def legend(**changed):
        run = record(state_bytes=changed.pop("state_bytes", 200))
        run["config"] |= changed
        drawn = recall_by_state.draw(load(write([run])))
        return [text.get_text() for text in drawn.legends[0].get_texts()], plotted(drawn)

    names, points = legend()
    assert "recurrent bound" in names
    assert max(x for x, y in points if y == 1) == pytest.approx(24, rel=0.05)
    assert "recurrent bound: 1 from 24 B on" in legend(state_bytes=1 << 20, seed=1)[0]
    assert not any("bound" in name for name in legend(**{"task.name": "two_hop", "seed": 2})[0])


def decoded(record, *, seed, dtype=None, size=4, **changed):
    """A run, or its evaluation with the state in another dtype."""
    run = record(state_bytes=1000 * size, seed=seed, **changed)
    run["config"]["decode.state_dtype"] = dtype
    run["state"].update(dtype=dtype or "float32", elements=1000)
    return run if dtype is None else {**run, "identity": f"{seed:016x}"}


def test_recall_by_state_draws_what_was_trained_and_the_frontier_of_all_dtypes(record, write):
    wide, narrow = (
        decoded(record, seed=0, accuracy=0.9),
        decoded(record, seed=1, dtype="bfloat16", size=2, accuracy=0.8),
    )
    narrow["config"]["seed"] = 0
    narrow["identity"] = "0" * 16
    runs = load(write([wide, narrow]))
    assert recall_by_state.table(runs)["state.bytes"].tolist() == [4000]
    axes = recall_by_state.draw(runs).axes[0]
    corners = [line.get_xydata() for line in axes.lines if line.get_linestyle() == "--"]
    assert (corners[0][:-1] == [[2000, 0.8], [4000, 0.8], [4000, 0.9]]).all()
    assert not [line for line in recall_by_state.draw(runs.iloc[:1]).axes[0].lines if line.get_linestyle() == "--"]


def test_dtypes_are_compared_at_the_seeds_that_all_of_them_have(record, write):
    trained = [decoded(record, seed=seed, accuracy=accuracy) for seed, accuracy in ((0, 0.1), (1, 0.9), (2, 0.7))]
    narrow = [decoded(record, seed=seed, accuracy=0.6, dtype="bfloat16", size=2) for seed in (1, 2)]
    found = accuracy_by_state_dtype.table(load(write([*trained, *narrow])))
    assert dict(zip(found["state.dtype"], found["accuracy"], strict=True)) == {
        "bfloat16": pytest.approx(0.6),
        "float32": pytest.approx(0.8),
    }


def test_rooflines_are_tokens_over_the_floor(records_for, write):
    records = records_for("throughput_by_batch")
    table = throughput_by_batch.table(load(write(records)))
    some = records[0]
    assert some["config"]["throughput.kind"] == "prefill"
    config, metrics = some["config"], some["metrics"]
    tokens = config["throughput.batch_size"] * config["throughput.prompt_length"]
    row = table.query("kind == 'prefill' and family == @some['family'] and batch_size == @metrics['batch_size']")
    assert row["floor_tokens_per_second"].tolist() == [tokens / metrics["floor_seconds"]]
    assert (table["floor_tokens_per_second"] > table["tokens_per_second"]).all()


def test_a_batch_asked_for_as_the_largest_ends_its_line(records_for, write):
    """Though fewer passes over it were timed, which is no other condition."""
    records = records_for("throughput_by_batch")
    before = throughput_by_batch.table(load(write(records)))
    for record in records:
        largest = record["metrics"]["batch_size"] == 64
        record["config"] |= {"throughput.passes": 1 if largest else 5}
        record["config"] |= {"throughput.batch_size": "largest"} if largest else {}
    assert throughput_by_batch.table(load(write(records))).equals(before)


def test_each_device_has_panels_of_its_own(write, records_for):
    records = records_for("throughput_by_batch")
    for record in records[::2]:
        record["config"]["throughput.device_name"] = "NVIDIA H200"
    runs = load(write(records))
    figure = throughput_by_batch.draw(runs)
    titles = {axes.get_title(loc="left") for axes in figure.axes}
    drawn = throughput_by_batch.table(runs)
    assert titles == set(drawn["kind"] + ", " + drawn["device"])
    assert set(drawn["device"]) == {"NVIDIA H100", "NVIDIA H200"}


def test_speeds_under_several_conditions_share_no_axis(record, records_for, write):
    """Of two batch sizes that with more architectures timed counts, and nothing of the other."""
    records = records_for("recall_by_throughput")
    odd = json.loads(json.dumps(records[-1]))
    odd["config"]["throughput.batch_size"] = odd["metrics"]["batch_size"] = 64
    odd["identity"] += "x"
    table = recall_by_throughput.table(load(write([*records, odd])))
    assert set(table["batch_size"]) == {8}
    assert len(table) == 18


def test_names_that_leave_no_room_are_said():
    place = {"family": "based", "state.bytes": 64, "label": " ".join(f"setting_{i}={i}" for i in range(9))}
    drawn = DataFrame(
        [{**place, "n": n, **dict.fromkeys(("accuracy", "accuracy_min", "accuracy_max"), 0.5)} for n in (1, 2)]
    )
    with pytest.raises(NotEnough, match="names of its points leave no room"):
        small_multiples(drawn, "n", "n")
    with pytest.raises(NotEnough, match="names of its lines leave no room"):
        ended_lines({"": drawn.assign(line=0)}, "n", "state.bytes", ("n", "bytes"))
