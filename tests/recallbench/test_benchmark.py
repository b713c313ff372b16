"""The benchmarks measure what they say, on any device."""

import pandas as pd
import pytest
import torch

from recallbench import benchmark, kernel_benchmark, plain_benchmark
from recallbench.benchmark import Case, measure, over_based, table


def test_a_step_and_an_epoch(monkeypatch):
    monkeypatch.setattr(benchmark, "SEGMENTS", {(8, 2): 256})
    rows = pd.DataFrame(
        [
            measure(case, torch.device("cpu"), "float32", batches=2)
            for case in (
                Case("linear_attention", {"feature_dim": 4}, 8, (8, 2), 1000.0),
                Case("attention", {}, 8, (8, 2), None),
                Case("attention", {}, 8, None, 10.0),
            )
        ]
    )
    assert list(rows["measured"]) == ["step, ms", "step, ms", "epoch, s"]
    assert (rows["value"] > 0).all()
    assert rows["speedup"].tolist() == pytest.approx(
        [1000 / rows["value"][0], float("nan"), 10 / rows["value"][2]], nan_ok=True
    )
    ratios = over_based(rows)
    assert ratios[0] == 1
    assert ratios[1] == pytest.approx(rows["value"][1] / rows["value"][0])
    assert pd.isna(ratios[2])  # of an epoch there is no Based to compare with
    assert table(rows.assign(over_based=ratios)).row_count == 3


@pytest.mark.parametrize("case", kernel_benchmark.TRIAL, ids=lambda case: case.kernel)
def test_every_kernel_beside_its_floor(case):
    rows = pd.DataFrame(kernel_benchmark.measure(case, torch.device("cpu")))
    assert (rows["error"] == "").all()
    assert (rows["milliseconds"] > 0).all()
    torch.testing.assert_close(
        torch.tensor(rows["fraction"] * rows["milliseconds"]), torch.tensor(rows["floor"]), rtol=1e-9, atol=0
    )
    assert kernel_benchmark.table(rows).row_count == len(rows)


def test_a_run_becomes_as_accurate_both_ways():
    point = plain_benchmark.Point("attention", {}, 16, 1e-2)
    plain, ours = plain_benchmark.measure(point, torch.device("cpu"), plain_benchmark.SMALL)
    assert (plain["members"], ours["members"]) == (1, 4)
    assert (plain["epochs"], plain["steps"], ours["epochs"]) == (8, 64, 8)
    assert 64 < ours["steps"] <= 256  # of four members, which may end before
    assert plain["accuracy"] > 0.8  # of 8 values
    assert plain["accuracy"] == pytest.approx(ours["accuracy"], abs=0.02)
    assert plain_benchmark.table([plain, ours]).row_count == 2


STEP = {"mixer": "h3", "settings": "", "d_model": 8, "measured": "step, ms", "value": 1.0, "speedup": None}
CALL = {
    "kernel": "prefill",
    "B": 1,
    "N": 8,
    "state": "",
    "implementation": "ours",
    "milliseconds": 1.0,
    "fraction": 0.5,
}
ROWS = [
    (benchmark, STEP | {"sequence_length": 8, "num_kv_pairs": 2}),
    (kernel_benchmark, [CALL | {"error": ""}]),
]


@pytest.mark.parametrize(("module", "row"), ROWS)
def test_what_was_measured_before_an_error_is_kept(module, row, monkeypatch, tmp_path, capsys):
    """And takes the place of an older file only when all is there."""
    out, allowed = tmp_path / "rows.parquet", [2]

    def measure(*given):
        if not allowed[0]:
            raise RuntimeError("an illegal memory access")
        allowed[0] -= 1
        return row

    monkeypatch.setattr("sys.argv", ["benchmark", "--device", "cpu", "--out", str(out)])
    monkeypatch.setattr(module, "TRIAL", 2 * module.TRIAL[:1])
    monkeypatch.setattr(module, "measure", measure)
    module.main()
    before = pd.read_parquet(out)
    assert len(before) == 2
    assert {"device", "code_version", "torch"} <= set(before.columns)
    allowed[0] = 1
    with pytest.raises(RuntimeError, match="an illegal"):
        module.main()
    assert pd.read_parquet(out).equals(before)
    assert len(pd.read_parquet(tmp_path / "rows.parquet.partial")) == 1
    assert "1.00" in capsys.readouterr().out


def test_a_kernel_that_there_is_not_is_said(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["kernel_benchmark", "prefil"])
    with pytest.raises(SystemExit):
        kernel_benchmark.main()
    assert "prefil: there is no such kernel, but prefill, training" in capsys.readouterr().err
