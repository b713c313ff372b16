"""Recall accuracy against the length of the sequence, as in Zoology (Arora et al. 2023).

A panel a family; a line an architecture point, at the learning rate that validation chose; the mean where several
numbers of kv pairs were asked at one length.
"""

from matplotlib.figure import Figure
from pandas import DataFrame

from analysis.figures import NotEnough
from analysis.small_multiples import accuracy_by, small_multiples
from analysis.style import print_style


def table(runs: DataFrame) -> DataFrame:
    """Accuracy by `sequence_length`, with the columns of `accuracy_by`."""
    found = accuracy_by(runs, "sequence_length")
    if found["sequence_length"].nunique() < 2:
        raise NotEnough(f"all slices have the same sequence length, {found['sequence_length'].iloc[0]:.0f}")
    return found


@print_style()
def draw(runs: DataFrame) -> Figure:
    """Draw the figure."""
    return small_multiples(table(runs), "sequence_length", "sequence length $N$ (tokens)")
