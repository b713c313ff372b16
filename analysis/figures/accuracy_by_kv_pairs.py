"""Recall accuracy against the number of kv pairs that a sequence holds, as in Zoology (Arora et al. 2023), Figure 2.

A panel a family; a line an architecture point, at the learning rate that validation chose.
"""

from matplotlib.figure import Figure
from pandas import DataFrame

from analysis.small_multiples import accuracy_by, small_multiples
from analysis.style import print_style


def table(runs: DataFrame) -> DataFrame:
    """Accuracy by `num_kv_pairs`, with the columns of `accuracy_by`."""
    return accuracy_by(runs, "num_kv_pairs")


@print_style()
def draw(runs: DataFrame) -> Figure:
    """Draw the figure."""
    return small_multiples(table(runs), "num_kv_pairs", "kv pairs per sequence")
