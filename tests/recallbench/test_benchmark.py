"""The benchmarks measure what they say, on any device."""

import pandas as pd
import pytest
import torch

from recallbench import benchmark, kernel_benchmark
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
