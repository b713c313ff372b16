"""Tokens a second against the batch size, measured and by the roofline (docs/throughput.md).

A panel for decode and one for prefill; a line an architecture, all other settings equal along it.
"""

from matplotlib.figure import Figure
from pandas import DataFrame

from analysis.style import print_style
from analysis.throughput_lines import speed_lines, speeds_by


def table(runs: DataFrame) -> DataFrame:
    """The measurements that are drawn, with the columns of `speeds_by`."""
    return speeds_by(runs, "batch_size")


@print_style()
def draw(runs: DataFrame) -> Figure:
    """Draw the figure."""
    return speed_lines(table(runs), "batch_size", "batch size $B$")
