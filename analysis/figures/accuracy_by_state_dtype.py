"""Recall accuracy against the dtype in which the state is kept between decode steps (`decode.state_dtype`).

A panel a family; a line an architecture point. Weights are the same along a line: one training, decoded once for each
dtype.
"""

from matplotlib.figure import Figure
from pandas import DataFrame

from analysis.architectures import at_best_learning_rate, synthetic
from analysis.figures import NotEnough
from analysis.small_multiples import over_seeds, small_multiples
from analysis.style import print_style

_NAMES = {
    "float8_e5m2": "e5m2",
    "float8_e4m3fn": "e4m3",
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
}
"""By the bits of a number, and then of its fraction."""


def table(runs: DataFrame) -> DataFrame:
    """One row a point and dtype: the columns of `accuracy_by` over `state.dtype`, and `state.bits` a sequence.

    `state.bytes` is that of the widest dtype, so that a point keeps its place along its line. The learning rate of a
    dtype is chosen by validation in that dtype. Of the seeds those that all dtypes of the point have.
    """
    chosen = at_best_learning_rate(synthetic(runs))
    known = chosen.dropna(subset=["accuracy", "state.dtype"]).copy()
    if len(set(known["state.dtype"])) < 2:
        raise NotEnough("no two runs kept their state in different dtypes")
    if unknown := set(known["state.dtype"]) - set(_NAMES):
        raise NotEnough(f"the state dtype {min(unknown)} has no place on the axis")
    known["label"] = [_without(label, set(_NAMES)) for label in known["label"]]
    known["bits"] = 8 * known["state.bytes"]
    point = ["family", "label"]
    known["state.bytes"] = known.groupby(point)["state.bytes"].transform("max")
    known = known.loc[known.groupby(point)["state.dtype"].transform("nunique").gt(1)]
    # A seed that only some dtypes have would show as a difference between dtypes.
    dtypes = known.groupby(point)["state.dtype"].transform("nunique")
    shared = known.groupby([*point, "seed"])["state.dtype"].transform("nunique") == dtypes
    known = known.loc[shared | ~shared.groupby([known[name] for name in point]).transform("any")]
    if known.empty:
        raise NotEnough("no architecture was decoded with its state in two dtypes")
    found = over_seeds(known, "state.dtype")
    bits = known.groupby([*point, "state.dtype"], as_index=False).agg(**{"state.bits": ("bits", "first")})
    found = found.merge(bits, on=[*point, "state.dtype"])
    rank = found["state.dtype"].map(list(_NAMES).index)
    return (
        found.assign(rank=rank)
        .sort_values([*point[:1], "state.bytes", "label", "rank"], ignore_index=True)
        .drop(columns="rank")
    )


@print_style()
def draw(runs: DataFrame) -> Figure:
    """Draw the figure."""
    drawn = table(runs)
    names = {dtype: name for dtype, name in _NAMES.items() if dtype in set(drawn["state.dtype"])}
    return small_multiples(drawn, "state.dtype", "dtype of the state", names)


def _without(label: str, words: set[str]) -> str:
    return " ".join(word for word in label.split(" ") if word not in words)
