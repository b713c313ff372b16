"""Recall accuracy against state by feature map: Based (Arora et al. 2024), Figure 3.

A line a feature map, over the widths that were run, each at the learning rate that validation chose; error bars span
seeds. The mixer is that whose feature map was varied most.
"""

from matplotlib.figure import Figure
from pandas import DataFrame

from analysis.architectures import as_trained, points
from analysis.figures import NotEnough
from analysis.scatter import marker, stacked, state_title
from analysis.style import Look, accuracy_axis, bytes_axis, look, print_style

_LIKE = {
    "taylor": "based",
    "taylor1": "linear_attention",
    "taylor3": "retnet",
    "elu": "hyena",
    "relu": "sliding_window",
    "identity": "attention",
    "square": "mamba",
    "rebased": "mamba2",
    "hedgehog": "gla",
    "performer": "h3",
}
"""The family whose colour and marker a feature map has here; no family is beside it."""


def table(runs: DataFrame) -> DataFrame:
    """One row a point: `family`, `feature_map`, `label` and the scores and state of `analysis.points`."""
    found = points(as_trained(runs))
    if "mixer.feature_map" not in found or found["accuracy"].isna().all():
        raise NotEnough("no completed run has a feature map")
    found = found.dropna(subset=["mixer.feature_map", "accuracy", "state.bytes"])
    maps = found.groupby("family")["mixer.feature_map"].nunique()
    if maps.empty or maps.max() < 2:
        raise NotEnough("no mixer has completed with two feature maps")
    found = found.loc[found["family"] == maps.idxmax()].rename(columns={"mixer.feature_map": "feature_map"})
    if found["state.length"].nunique() > 1:
        raise NotEnough("states measured at several lengths do not compare")
    columns = ["feature_map", *found.loc[:, "family":"state.dtype"]]
    return found[columns].sort_values(["feature_map", "state.bytes"], ignore_index=True)


@print_style()
def draw(runs: DataFrame) -> Figure:
    """Draw the figure."""
    drawn = table(runs)
    styles = {name: _look(str(name)) for name in drawn["feature_map"].unique()}
    figure, (axes,) = stacked(styles.values())
    axes.set_xlabel(state_title(drawn))
    axes.set_ylabel("recall accuracy")
    accuracy_axis(axes)
    bytes_axis(axes, drawn.loc[:, "state.bytes"])
    for name, rows in drawn.groupby("feature_map"):
        style = styles[name]
        several = rows[rows["seeds"] > 1]
        low, high = several["accuracy_min"], several["accuracy_max"]
        axes.vlines(several["state.bytes"], low, high, color=style.color, linewidth=0.9)
        axes.plot(rows["state.bytes"], rows["accuracy"], **{**marker(style), "linestyle": "-"})
    return figure


def _look(feature_map: str) -> Look:
    return look(_LIKE.get(feature_map, feature_map))._replace(name=feature_map.replace("_", " "))
