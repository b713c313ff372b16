"""Recall accuracy against tokens decoded a second, the Pareto frontier of the two, and below the state that it takes.

Recall and speed come from different runs, of the same architecture: equal in every setting of model and mixer. A marker
an architecture point, above and straight below; error bars span seeds of the recall.
"""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame

from analysis.architectures import as_trained, points
from analysis.figures import NotEnough
from analysis.pareto import frontier
from analysis.scatter import FRONTIER, looks, markers, scatter, stacked, state_title, steps
from analysis.speed import with_speed
from analysis.style import accuracy_axis, count_axis, print_style
from analysis.throughput_lines import timed


def table(runs: DataFrame) -> DataFrame:
    """The points of `analysis.points` that were also timed, with `tokens_per_second` and `frontier`.

    Besides: `batch_size`, `prompt_length` and `device_name`, the same for all: the conditions (`throughput.*`) under
    which most of the points were timed, and of those the largest batch.
    """
    found = points(as_trained(runs)).dropna(subset=["accuracy", "state.bytes"])
    if found.empty:
        raise NotEnough("no run has completed with an accuracy and a measured state")
    measured = timed(runs)
    measured = measured.loc[measured["throughput.kind"] == "decode"]
    conditions = [str(name) for name in measured if str(name).startswith("throughput.")]
    each = [_timed_at(found, rows) for _, rows in measured.groupby(conditions, dropna=False, sort=False)]
    best = max(each, key=lambda table: (len(table), table["batch_size"].max()), default=found.head(0))
    if best.empty:
        raise NotEnough("no architecture has been both trained and timed while decoding")
    return best.assign(frontier=frontier(best, "tokens_per_second", better={"tokens_per_second": "more"}))


def _timed_at(found: DataFrame, measured: DataFrame) -> DataFrame:
    joined = with_speed(found, measured).points.dropna(subset=["decode_tokens_per_second"])
    conditions = measured[["batch_size", "throughput.prompt_length", "throughput.device_name"]].iloc[0]
    columns = joined.loc[:, "family":"state.dtype"]
    return columns.assign(
        tokens_per_second=joined["decode_tokens_per_second"],
        batch_size=conditions["batch_size"],
        prompt_length=conditions["throughput.prompt_length"],
        device_name=conditions["throughput.device_name"],
    )


@print_style()
def draw(runs: DataFrame) -> Figure:
    """Draw the figure; where labels would collide, the frontier's are kept."""
    drawn = table(runs).sort_values(["frontier", "accuracy"], ascending=False)
    frontiers = [Line2D([], [], **FRONTIER, label="Pareto frontier")]
    figure, (axes, below) = stacked(looks(drawn), ("recall accuracy", f"bytes of {state_title(drawn)}"), frontiers)
    batch, prompt = drawn[["batch_size", "prompt_length"]].iloc[0]
    below.set_xlabel(f"tokens decoded per second ($B$ = {batch:.0f}, $N$ = {prompt:.0f})")
    accuracy_axis(axes)
    count_axis(below.yaxis, drawn.loc[:, "state.bytes"])
    for panel in (axes, below):
        count_axis(panel.xaxis, drawn.loc[:, "tokens_per_second"], room=1.15)
    best = drawn.loc[drawn["frontier"]].assign(cost=-drawn["tokens_per_second"])
    corners = steps(best, -axes.get_xlim()[0], "cost") * [-1, 1]
    axes.plot(*corners.T, **FRONTIER, zorder=1.5)
    scatter(axes, drawn, "tokens_per_second", "accuracy", lines=[corners])
    markers(below, drawn, "tokens_per_second", "state.bytes")
    return figure
