"""Recall accuracy against tokens decoded a second, and the Pareto frontier of the two.

Recall and speed come from different runs, of the same architecture: equal in every setting of model and mixer. A marker
an architecture point; error bars span seeds of the recall.
"""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame

from analysis.architectures import points, synthetic
from analysis.figures import NotEnough
from analysis.pareto import frontier
from analysis.scatter import FRONTIER, looks, scatter, stacked, steps
from analysis.speed import SPEED, at_one_place, of_architecture
from analysis.style import accuracy_axis, count_axis, print_style


def table(runs: DataFrame) -> DataFrame:
    """The points of `analysis.points` that were also timed, with `tokens_per_second` and `frontier`.

    Besides: `batch_size`, `throughput.prompt_length`, `throughput.device_name`, the same for all: those at which most of
    these architectures were timed, and of those the largest batch and prompt.
    """
    found = points(synthetic(runs))
    found = found.dropna(subset=["accuracy"])
    if found.empty:
        raise NotEnough("no run has completed with an accuracy")
    timed = at_one_place(runs, "decode", of_architecture(found))
    found = found.assign(architecture=of_architecture(found)).merge(timed, on="architecture")
    if found.empty:
        raise NotEnough("no architecture has been both trained and timed while decoding")
    found = found[[*found.loc[:, "family":"state.dtype"], *SPEED]]
    slowness = found.assign(cost=-found["tokens_per_second"])
    return found.assign(frontier=frontier(slowness, "cost"))


@print_style()
def draw(runs: DataFrame) -> Figure:
    """Draw the figure; where labels would collide, the frontier's are kept."""
    drawn = table(runs).sort_values(["frontier", "accuracy"], ascending=False)
    figure, (axes,) = stacked(looks(drawn), others=[Line2D([], [], **FRONTIER, label="Pareto frontier")])
    batch, prompt = drawn[["batch_size", "throughput.prompt_length"]].iloc[0]
    axes.set_xlabel(f"tokens decoded per second ($B$ = {batch:.0f}, $N$ = {prompt:.0f})")
    axes.set_ylabel("recall accuracy")
    accuracy_axis(axes)
    count_axis(axes.xaxis, drawn.loc[:, "tokens_per_second"], room=1.15)
    best = drawn.loc[drawn["frontier"]].assign(cost=-drawn["tokens_per_second"])
    corners = steps(best, -axes.get_xlim()[0], "cost") * [-1, 1]
    axes.plot(*corners.T, **FRONTIER, zorder=1.5)
    scatter(axes, drawn, "tokens_per_second", "accuracy", lines=[corners])
    return figure
