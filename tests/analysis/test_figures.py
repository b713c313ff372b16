"""Every figure in the folder: it draws, and what it says can be read."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.text import Text

from analysis import figures, frontier, load, points
from analysis.figures import NotEnough, accuracy_by_kv_pairs, recall_by_state
from analysis.style import COLUMN_WIDTH, save

FIGURES = figures.discover()

every_figure = pytest.mark.parametrize("figure", FIGURES.values(), ids=list(FIGURES))


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
def test_texts_overlap_neither_each_other_nor_the_edge(figure, runs):
    drawn = figure.draw(runs)
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


@every_figure
def test_figures_fit_a_column_in_legible_type(figure, runs):
    drawn = figure.draw(runs)
    assert drawn.get_figwidth() == COLUMN_WIDTH
    assert min(text.get_fontsize() for text, _ in texts(drawn)) >= 7


@every_figure
@pytest.mark.parametrize("suffix", [".pdf", ".png"])
def test_equal_figures_give_equal_files(figure, study, write, tmp_path, suffix):
    runs = load(write(study()))
    for name in ("one", "other"):
        save(figure.draw(runs), tmp_path / f"{name}{suffix}")
    one, other = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "other"))
    assert one == other
    assert b"CreationDate" not in one


@every_figure
def test_nothing_completed_is_not_enough(figure, record, write):
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


@every_figure
def test_a_large_study_of_many_families_still_reads(figure, record, write):
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
