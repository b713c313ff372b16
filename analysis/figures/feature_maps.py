"""Recall accuracy against state by feature map: Based (Arora et al. 2024), Figure 3.

A line a feature map and feature dimension K, over the widths D that were run, each at the learning rate that validation
chose, and a dashed one where K is D; error bars span seeds. The mixer is that whose feature map was varied most, and
beside it cosFormer, whose map needs the position and so is a mixer of its own.
"""

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame, Series

from analysis.architectures import as_trained, points
from analysis.figures import NotEnough
from analysis.scatter import marker, stacked, state_title
from analysis.style import FAINT_INK, Look, accuracy_axis, bytes_axis, look, print_style

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
    "cosformer": "deltanet",
}
"""The family whose colour and marker a feature map has here; no family is beside it."""


def table(runs: DataFrame) -> DataFrame:
    """One row a point: `feature_map`, `K`, `K_is_D`, `family`, `label` and the scores and state of `points`."""
    found = points(as_trained(runs))
    if "mixer.feature_map" not in found or found["accuracy"].dropna().empty:
        raise NotEnough("no completed run has a feature map")
    found["mixer.feature_map"] = found["mixer.feature_map"].mask(found["family"] == "cosformer", "cosformer")
    found = found.dropna(subset=["mixer.feature_map", "accuracy", "state.bytes"])
    maps = found.groupby("family")["mixer.feature_map"].nunique()
    if max(maps, default=0) < 2:
        raise NotEnough("no mixer has completed with two feature maps")
    found = found.loc[found["family"].isin([maps.idxmax(), "cosformer"])]
    found = found.rename(columns={"mixer.feature_map": "feature_map"})
    K, D = (found.get(name, Series(np.nan, found.index)) for name in ("mixer.feature_dim", "model.d_model"))
    found = found.assign(K=K, K_is_D=K == D)
    if len(set(found["state.length"])) > 1:
        raise NotEnough("states measured at several lengths do not compare")
    columns = ["feature_map", "K", "K_is_D", *found.loc[:, "family":"state.dtype"]]
    return found[columns].sort_values(["feature_map", "K_is_D", "K", "state.bytes"], ignore_index=True)


@print_style()
def draw(runs: DataFrame) -> Figure:
    """Draw the figure."""
    drawn = table(runs)
    styles = {name: _look(str(name)) for name in drawn["feature_map"].unique()}
    dashed = [Line2D([], [], color=FAINT_INK, linestyle="--", label="$K$ = $D$")]
    figure, (axes,) = stacked(styles.values(), others=dashed if drawn["K_is_D"].to_numpy().any() else [])
    axes.set_xlabel(state_title(drawn))
    axes.set_ylabel("recall accuracy")
    accuracy_axis(axes)
    bytes_axis(axes, drawn.loc[:, "state.bytes"])
    for name, of_map in drawn.groupby("feature_map"):
        style = styles[name]
        for _, rows in of_map.groupby(of_map["K"].mask(of_map["K_is_D"], math.inf), dropna=False):
            several = rows[rows["seeds"] > 1]
            low, high = several["accuracy_min"], several["accuracy_max"]
            axes.vlines(several["state.bytes"], low, high, color=style.color, linewidth=0.9)
            drawn_as: dict[str, Any] = {**marker(style), "linestyle": "-"}
            if rows["K_is_D"].to_numpy().all():
                drawn_as |= {"linestyle": "--", "markerfacecolor": "white", "markeredgecolor": style.color}
            axes.plot(rows["state.bytes"], rows["accuracy"], **drawn_as)
    return figure


def _look(feature_map: str) -> Look:
    return look(_LIKE.get(feature_map, feature_map))._replace(name=feature_map.replace("_", " "))
