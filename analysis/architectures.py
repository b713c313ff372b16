"""Architecture points: runs that differ only in learning rate and seed, taken together."""

import json

from pandas import DataFrame, Series

from analysis.labels import labels

LANGUAGE = "lm"
DOCUMENTS = ("swde", "fda", "squad_completion", "lm_eval", "extraction")
"""The tasks that are running text, and documents, by `task.name`."""

_RATE = "train.learning_rate"
_STATE = ["state.bytes", "state.elements", "state.length", "state.dtype"]


def points(runs: DataFrame) -> DataFrame:
    """One row an architecture point, at its best learning rate, sorted by family and state.

    A point is every setting but `train.learning_rate` and `seed`. Its learning rate has the best
    mean `validation_accuracy` over seeds, where a diverged seed counts as 0: chosen by validation,
    reported on test. Of equal rates, and of rates without a validation accuracy, the smallest is
    taken.

    **Columns:** `family`; `label`, the settings in which the points of one family differ, as in
    "K=16 W=8"; `train.learning_rate`; over completed seeds `accuracy` and `validation_accuracy`
    (means, 0..1) and `accuracy_min`, `accuracy_max`, `accuracy_std` (sample standard deviation,
    NaN for one seed); `seeds`, the number completed, and `diverged`, the number diverged at that
    rate; `state.bytes`, `state.elements`, `state.length`, `state.dtype`; then every other setting.
    A point without a completed run stays, with NaN accuracy and 0 seeds.
    """
    runs = _with_point(runs)
    tried = _at_best_rate(runs)
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
        )
    )
    diverged = tried.loc[tried["status"] == "diverged"].groupby("point").size()
    of_point = runs.groupby("point")
    table = of_point[["family", "label"]].first().join([scores, DataFrame({"diverged": diverged})])
    table = table.join(of_point[[*_STATE, *_architecture(runs)]].first())
    table = table.fillna({"seeds": 0, "diverged": 0}).astype({"seeds": int, "diverged": int})
    return table.sort_values(["family", "state.bytes", "label"], ignore_index=True)


def at_best_learning_rate(runs: DataFrame) -> DataFrame:
    """The completed runs, one a seed, behind each row of `points`.

    Adds to their columns `point`, a number for each architecture point, and `label` as in `points`.
    """
    return _completed(_at_best_rate(_with_point(runs)))


def synthetic(runs: DataFrame) -> DataFrame:
    """The runs trained and tested on a synthetic recall task: no language models, nothing evaluated on documents."""
    return runs.loc[~runs["task.name"].isin([LANGUAGE, *DOCUMENTS])] if "task.name" in runs else runs


def _with_point(runs: DataFrame) -> DataFrame:
    runs = _trained(runs)
    expected = [_RATE, "seed", "accuracy", "validation_accuracy", *_STATE]
    runs = runs.reindex(columns=[*runs, *(name for name in expected if name not in runs)])
    runs = runs.astype({_RATE: float, "accuracy": float, "validation_accuracy": float})
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
    """The settings that make a point: dotted columns, but not those of a measured group.

    `seed`, which does not make a point, is the one setting without a dot.
    """
    measured = ("state.", "cost.", "provenance.")
    dotted = [name for name in runs if "." in str(name) and not str(name).startswith(measured)]
    return [str(name) for name in dotted if name != _RATE]


def _hashable(column: Series) -> Series:
    return column.map(json.dumps) if column.dtype == object else column


def _completed(runs: DataFrame) -> DataFrame:
    return runs.loc[runs["status"] == "completed"]


def _at_best_rate(runs: DataFrame) -> DataFrame:
    """The runs, diverged ones too, at the chosen rate of each point that has a completed run."""
    completed = runs["status"] == "completed"
    score = runs["validation_accuracy"].where(completed).mask(runs["status"] == "diverged", 0.0)
    rates = runs.assign(score=score, completed=completed).groupby(["point", _RATE], dropna=False)
    rates = rates.agg({"score": "mean", "completed": "any"}).reset_index()
    rates = rates.loc[rates["completed"]].sort_values(["score", _RATE], ascending=[False, True])
    return runs.merge(rates.drop_duplicates("point")[["point", _RATE]], on=["point", _RATE])
