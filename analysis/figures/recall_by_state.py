"""Recall accuracy against the bytes of state a sequence costs, and the Pareto frontier.

Based (Arora et al. 2024), Figure 2. A marker an architecture point, at the learning rate that validation chose; error
bars span seeds.
"""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame

from analysis.architectures import points, synthetic
from analysis.figures import NotEnough
from analysis.pareto import frontier
from analysis.scatter import FRONTIER, looks, scatter, stacked, state_title, steps
from analysis.style import accuracy_axis, bytes_axis, print_style


def table(runs: DataFrame) -> DataFrame:
    """The points of `analysis.points`, without their settings, and which are on the frontier."""
    found = points(synthetic(runs))
    if found[["accuracy", "state.bytes"]].dropna().empty:
        raise NotEnough("no run has completed with both an accuracy and a measured state")
    if len(found["state.length"].dropna().unique()) > 1:
        raise NotEnough("states measured at several lengths do not compare")
    columns = found.loc[:, "family":"state.dtype"]
    return columns.assign(frontier=frontier(found))


@print_style()
def draw(runs: DataFrame) -> Figure:
    """Draw the figure; where labels would collide, the frontier's are kept."""
    drawn = table(runs).dropna(subset=["accuracy", "state.bytes"])
    drawn = drawn.sort_values(["frontier", "accuracy"], ascending=False)
    figure, (axes,) = stacked(looks(drawn), others=[Line2D([], [], **FRONTIER, label="Pareto frontier")])
    axes.set_xlabel(state_title(drawn))
    axes.set_ylabel("recall accuracy")
    accuracy_axis(axes)
    bytes_axis(axes, drawn.loc[:, "state.bytes"])
    corners = steps(drawn.loc[drawn["frontier"]], axes.get_xlim()[1])
    axes.plot(*corners.T, **FRONTIER, zorder=1.5)
    scatter(axes, drawn, "state.bytes", "accuracy", lines=[corners])
    return figure
