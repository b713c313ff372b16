"""Perplexity of language models against state, on associative-recall hits and on all other tokens.

The split of Zoology (Arora et al. 2023, arXiv 2312.04927), section 3. A marker an architecture point, at the learning
rate that validation chose; error bars span seeds; lower is better.
"""

from matplotlib.figure import Figure
from pandas import DataFrame

from analysis.architectures import LANGUAGE, at_best_learning_rate
from analysis.figures import NotEnough
from analysis.scatter import looks, scatter, stacked, state_title
from analysis.style import bytes_axis, count_axis, print_style

_PARTS = {"ar_perplexity": "associative-recall hits", "other_perplexity": "other tokens"}


def table(runs: DataFrame) -> DataFrame:
    """One row a point: `family`, `label`; state; `perplexity` and those of its parts; `seeds`.

    Each perplexity has its `_min` and `_max` over seeds. Perplexities are exponentials of mean losses in
    nats; over seeds the mean is of perplexities.
    """
    if "task.name" not in runs or LANGUAGE not in set(runs["task.name"]):
        raise NotEnough("no run is a language model's")
    chosen = at_best_learning_rate(runs.loc[runs["task.name"] == LANGUAGE], chosen_by="validation_loss")
    chosen = chosen.reindex(columns=[*chosen, *({"perplexity", *_PARTS} - {*chosen})])
    chosen = chosen.dropna(subset=["state.bytes", *_PARTS])
    if chosen.empty:
        raise NotEnough("no language model has completed with perplexities and a measured state")
    if len(set(chosen["state.length"])) > 1:
        raise NotEnough("states measured at several lengths do not compare")
    scores = {
        f"{name}{end}": (name, how)
        for name in ("perplexity", *_PARTS)
        for end, how in {"": "mean", "_min": "min", "_max": "max"}.items()
    }
    state = {name: (name, "first") for name in ("state.bytes", "state.elements", "state.length", "state.dtype")}
    found = chosen.groupby(["family", "label", "point"], as_index=False).agg(
        **{**state, **scores, "seeds": ("identity", "size")}
    )
    return found.drop(columns="point").sort_values(["family", "state.bytes", "label"], ignore_index=True)


@print_style()
def draw(runs: DataFrame) -> Figure:
    """Draw the figure; where labels would collide, those of the best are kept."""
    drawn = table(runs).sort_values("ar_perplexity")
    figure, panels = stacked(looks(drawn), list(_PARTS.values()))
    for axes, part in zip(panels, _PARTS, strict=True):
        bytes_axis(axes, drawn.loc[:, "state.bytes"])
        count_axis(axes.yaxis, drawn.loc[:, part])
        axes.set_ylabel("perplexity")
        axes.yaxis.set_label_coords(-0.09, 0.5)  # clear of ticks as wide as 27.5, and one below the other
        scatter(axes, drawn, "state.bytes", part)
    panels[-1].set_xlabel(state_title(drawn))
    return figure
