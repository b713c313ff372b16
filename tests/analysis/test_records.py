"""Loading, saving and slicing of run records."""

import pytest
from pandas.testing import assert_frame_equal

from analysis import BrokenRecordError, NoRecordsError, by_slice, load, records, save


def test_one_row_a_run_with_flat_columns(record, write):
    runs = load(write([record(feature_dim=16), record("attention")]))
    assert len(runs) == 2
    based = runs.set_index("family").loc["based"]
    assert based["mixer.feature_dim"] == 16
    assert based["accuracy"] == based["validation_accuracy"] == 0.9
    assert based["state.bytes"] == 4096
    assert based["cost.seconds"] == 12.5
    assert based["provenance.packages.torch"] == "2.13.0"
    assert based["state.layers"][0]["mixer"] == "short_conv"
    assert [s["num_kv_pairs"] for s in based["slices"]] == [2, 4, 8, 16]


def test_unfinished_runs_are_not_records(record, write):
    runs = write([record()])
    (runs / "0123456789abcdef").mkdir()
    assert len(load(runs)) == 1


def test_one_file_and_several_sources_without_duplicates(record, write, tmp_path):
    first, second = record(seed=0), record(seed=1)
    runs = write([first, second])
    one = runs / first["identity"] / "result.json"
    assert load(one)["identity"].tolist() == [first["identity"]]
    save(load(runs), tmp_path / "saved.parquet")
    assert len(load([one, runs, tmp_path / "saved.parquet"])) == 2


def test_round_trip(record, write, study, tmp_path):
    mixed = [record(chunk=64), record(chunk="auto"), record("mamba", None, status="diverged")]
    runs = load(write([*study(), *mixed]))
    save(runs, tmp_path / "published" / "runs.parquet")
    assert_frame_equal(load(tmp_path / "published" / "runs.parquet"), runs)


def test_a_failed_save_leaves_the_old_file(record, write, tmp_path, monkeypatch):
    file = tmp_path / "saved" / "runs.parquet"
    runs = load(write([record()]))
    save(runs, file)

    def fail(table, where, **_):
        where.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(records.pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        save(runs, file)
    assert [found.name for found in file.parent.iterdir()] == ["runs.parquet"]
    assert_frame_equal(load(file), runs)


def test_the_manifest_decides_what_belongs_to_a_study(record, write, tmp_path):
    own, shared, other = record(seed=0), record(seed=1, study="large"), record(seed=2)
    root = write([own, shared, other], quick=[own, shared, record(seed=3)])
    runs = load(root, study="quick")
    assert set(runs["identity"]) == {own["identity"], shared["identity"]}
    assert set(runs["study"]) == {"quick"}
    assert len(load(root / shared["identity"] / "result.json", study="quick")) == 1
    with pytest.raises(NoRecordsError):
        load(root / other["identity"] / "result.json", study="quick")
    save(runs, tmp_path / "quick.parquet")
    assert_frame_equal(load(tmp_path / "quick.parquet", study="quick"), runs)


def test_without_manifest_the_record_names_its_study(record, write):
    root = write([record(seed=0), record(seed=1, study="large")])
    assert load(root, study="large")["seed"].tolist() == [1]


@pytest.mark.parametrize("content", ["{", "[]", '{"identity": "a"}', "\ud800"])
def test_a_broken_record_is_named(record, write, content):
    root = write([record()])
    (root / "broken").mkdir()
    file = root / "broken" / "result.json"
    file.write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(BrokenRecordError, match=str(file)):
        load(root)


def test_a_broken_parquet_file_is_named(tmp_path):
    file = tmp_path / "runs.parquet"
    file.write_bytes(b"not parquet")
    with pytest.raises(BrokenRecordError, match=str(file)):
        load(file)


def test_nothing_found(tmp_path, record, write):
    for nowhere in (tmp_path, tmp_path / "missing", tmp_path / "missing.parquet", []):
        with pytest.raises(NoRecordsError, match="no run records"):
            load(nowhere)
    with pytest.raises(NoRecordsError, match="'other'"):
        load(write([record()]), study="other")


def test_slices_replace_the_overall_metrics(record, write):
    runs = load(write([record(slices={4: 1.0, 8: 0.5}), record("mamba", None, status="diverged")]))
    slices = by_slice(runs)
    assert slices[["num_kv_pairs", "accuracy"]].values.tolist() == [[4, 1.0], [8, 0.5]]
    assert slices["loss"].tolist() == [0.1, 0.1]
    assert slices["state.bytes"].tolist() == [4096, 4096]
    assert "slices" not in slices
