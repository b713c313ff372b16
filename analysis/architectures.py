"""Architecture points: runs that differ only in learning rate and seed, taken together."""

import json
import math

import pandas as pd
from pandas import DataFrame, Series

from analysis.labels import labels
from analysis.quantities import check_numbers, direction

LANGUAGE = "lm"
DOCUMENTS = ("swde", "fda", "squad_completion", "lm_eval", "extraction")
"""The tasks that are running text, and documents, by `task.name`."""

_RATE = "train.learning_rate"
_NO_POINT = {_RATE, "train.micro_batch_size", "task.batch_size"}
"""Settings that make no point: the rate is chosen, and how a batch is cut up changes no result."""
_STATE = ["state.bytes", "state.elements", "state.length", "state.dtype", "state.bits"]
_COST = ["cost.seconds", "cost.peak_memory_bytes", "cost.parameters"]


def points(runs: DataFrame, *, chosen_by: str = "validation_accuracy") -> DataFrame:
    """One row an architecture point, at its best learning rate, sorted by family and state.

    A point is every setting that can change a result but `train.learning_rate` and `seed`. Its learning rate has the
    best mean `chosen_by` over the seeds that all its rates have, and over what diverged, which counts as
    0, or as infinite if less is better: chosen by validation, reported on test, over all seeds of
    that rate. Of equal rates, and of rates without a validation score, the smallest is taken.

    **Columns:** `family`; `label`, the settings in which the points of one family differ, as in
    "K=16 W=8"; `train.learning_rate`; over completed seeds `accuracy` and `validation_accuracy`
    (means, 0..1) and `accuracy_min`, `accuracy_max`, `accuracy_std` (sample standard deviation,
    NaN for one seed); `seeds`, the number completed, and `diverged`, the number diverged at that
    rate; `state.bytes`, `state.elements`, `state.length`, `state.dtype`, `state.bits`; means over
    completed seeds of `cost.seconds` (of training), `cost.peak_memory_bytes`, `cost.parameters` and
    every other metric, such as a perplexity; then every other setting. A point without a completed
    run stays, with NaN accuracy and 0 seeds.

    **Raises** `ValueError` for a `chosen_by` that is not a validation metric of the runs.
    """
    runs = _with_point(runs)
    tried = _at_best_rate(runs, chosen_by)
    scores = (
        _completed(tried)
        .groupby("point")
        .agg(
            **{_RATE: (_RATE, "first")},
            accuracy=("accuracy", "mean"),
            accuracy_min=("accuracy", "min"),
            accuracy_max=("accuracy", "max"),
            accuracy_std=("accuracy", "std"),
            validation_accuracy=("validation_accuracy", "mean"),
            seeds=("identity", "size"),
            **{name: (name, "mean") for name in [*_COST, *_metrics(runs)]},
        )
    )
    diverged = tried.loc[tried["status"] == "diverged"].groupby("point").size()
    of_point = runs.groupby("point")
    settings = _architecture(runs)
    table = of_point[["family", "label"]].first().join([scores, DataFrame({"diverged": diverged})])
    table = table.join(of_point[[*_STATE, *settings]].first())
    own = [name for name in table if name not in {*_STATE, *_COST, *_metrics(runs), *settings}]
    table = table.loc[:, [*own, *_STATE, *_COST, *_metrics(runs), *settings]]
    table = table.fillna({"seeds": 0, "diverged": 0}).astype({"seeds": int, "diverged": int})
    return table.sort_values(by=["family", "state.bytes", "label"], ignore_index=True)


def at_best_learning_rate(runs: DataFrame, *, chosen_by: str = "validation_accuracy") -> DataFrame:
    """The completed runs, one a seed, behind each row of `points`: what the statistics over seeds start from.

    Adds to their columns `point`, a number for each architecture point, `label` as in `points`, and
    `state.bits`. For slices, `by_slice` of this: one learning rate an architecture, chosen on validation
    over all slices, and never by the slice that is reported.

    **Raises** `ValueError` as `points` does.
    """
    return _completed(_at_best_rate(_with_point(runs), chosen_by))


def synthetic(runs: DataFrame) -> DataFrame:
    """The runs trained and tested on a synthetic recall task: no language models, nothing evaluated on documents."""
    return runs.loc[~runs["task.name"].isin([LANGUAGE, *DOCUMENTS])] if "task.name" in runs else runs


def as_trained(runs: DataFrame) -> DataFrame:
    """Of `synthetic` runs those that were evaluated in parallel form, not again with the state in another dtype."""
    runs = synthetic(runs)
    return runs.loc[runs["decode.state_dtype"].isna()] if "decode.state_dtype" in runs else runs


def _with_point(runs: DataFrame) -> DataFrame:
    runs = _trained(runs)
    expected = [_RATE, "seed", "accuracy", "validation_accuracy", *_STATE, *_COST]
    runs = runs.reindex(columns=[*runs, *(name for name in expected if name not in runs)])
    runs = runs.astype(dict.fromkeys([_RATE, "accuracy", "validation_accuracy", *_COST], float))
    runs["state.bits"] = 8 * runs["state.bytes"].astype(float)
    settings = runs.loc[:, _architecture(runs)]
    hashable = (_hashable(column) for _, column in settings.items())
    varied = [column for column in hashable if column.nunique(dropna=False) > 1]
    runs["point"] = runs.groupby([runs["family"], *varied], dropna=False).ngroup()
    one_each = runs.drop_duplicates("point").set_index("point")
    names = labels(one_each.loc[:, "family"], one_each.loc[:, settings.columns])
    return runs.join(names, on="point")


def _trained(runs: DataFrame) -> DataFrame:
    """The runs that were trained, without measurements of speed and their settings."""
    of_speed = [name for name in runs if str(name).startswith("throughput.")]
    return runs.loc[runs["throughput.kind"].isna()].drop(columns=of_speed) if of_speed else runs


def _architecture(runs: DataFrame) -> list[str]:
    """The settings that make a point: dotted columns, but not those of a measured group, nor where a corpus lies.

    What a corpus holds is `corpus.digest`. `seed`, which does not make a point, is the one setting without a dot.
    """
    others = ("state.", "cost.", "provenance.", "data.")
    dotted = [str(name) for name in runs if "." in str(name)]
    return [name for name in dotted if not name.startswith(others) and name not in _NO_POINT]


def _metrics(runs: DataFrame) -> list[str]:
    """The other metrics: columns of numbers that are neither dotted nor named by `points`."""
    known = {"seed", "point", "accuracy", "validation_accuracy"}
    undotted = [str(name) for name in runs if "." not in str(name) and name not in known]
    return [name for name in undotted if pd.api.types.is_float_dtype(runs[name])]


def _hashable(column: Series) -> Series:
    return column.map(json.dumps) if column.dtype == object else column


def _completed(runs: DataFrame) -> DataFrame:
    return runs.loc[runs["status"] == "completed"]


def _at_best_rate(runs: DataFrame, chosen_by: str) -> DataFrame:
    """The runs, diverged ones too, at the chosen rate of each point that has a completed run."""
    if not chosen_by.startswith("validation_"):
        raise ValueError(f"chosen_by is {chosen_by!r}, but a learning rate is chosen by a metric named validation_...")
    check_numbers(runs, chosen_by)
    more = direction(chosen_by, "more") == "more"
    completed, diverged = (runs["status"] == status for status in ("completed", "diverged"))
    score = runs[chosen_by].where(completed).mask(diverged, 0.0 if more else math.inf)
    tried = runs.assign(score=score, completed=completed).loc[completed | diverged]
    tried = tried.loc[tried.groupby(["point", _RATE], dropna=False)["completed"].transform("any")]
    rates = tried.loc[_comparable(tried)].groupby(["point", _RATE], dropna=False)["score"].mean().reset_index()
    rates = rates.sort_values(["score", _RATE], ascending=[not more, True])
    return runs.merge(rates.drop_duplicates("point")[["point", _RATE]], on=["point", _RATE])


def _comparable(tried: DataFrame) -> Series:
    """Which runs learning rates are compared by: those of seeds that all rates of a point have, or else all.

    One that diverged speaks against its rate, whatever the others did at that seed.
    """
    rates = tried.groupby("point")[_RATE].transform("nunique")
    shared = tried.groupby(["point", "seed"], dropna=False)[_RATE].transform("nunique").eq(rates)
    none = ~shared.groupby(tried["point"]).transform("any")
    return Series(shared | tried["status"].eq("diverged") | none)
