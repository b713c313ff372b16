"""Bytes of state a sequence against the tokens that it has read: what grows, and what does not.

A line an architecture, from runs of any kind that measured its state at two lengths at least, in one dtype.
"""

from matplotlib.figure import Figure
from pandas import DataFrame, Series

from analysis.figures import NotEnough
from analysis.labels import labels
from analysis.lines import ended_lines
from analysis.style import print_style
from analysis.throughput_lines import as_text


def table(runs: DataFrame) -> DataFrame:
    """One row an architecture, dtype and length: `family`, `label`, `line`, `state.length`, `state.dtype`, `state.bytes`.

    An architecture is all settings of model and mixer but the vocabulary. Lines hold two lengths at least.
    """
    if "state.bytes" not in runs or runs["state.bytes"].isna().all():
        raise NotEnough("no run has measured its state")
    found = runs.dropna(subset=["state.bytes", "state.length"])
    found = found.loc[found["status"] == "completed"]
    beside = ("model.vocab_size", "model.family", "model.run")
    settings = [str(name) for name in found if str(name).startswith(("model.", "mixer.")) and name not in beside]
    settings.append("state.dtype")
    key = found[settings].apply(as_text, axis=1) if len(found) else Series(dtype=str)
    found = found.assign(line=key.groupby(key).ngroup())
    found = found.drop_duplicates(["line", "state.length"])
    found = found.loc[found.groupby("line")["state.length"].transform("nunique") > 1]
    if found.empty:
        raise NotEnough("no architecture has measured its state at two lengths")
    one_each = found.drop_duplicates("line").set_index("line")
    named: Series = labels(one_each.loc[:, "family"], one_each.loc[:, settings])
    found = found.assign(label=found["line"].map(named))
    columns = ["family", "label", "line", "state.length", "state.dtype", "state.bytes"]
    return found.sort_values(["family", "line", "state.length"])[columns].reset_index(drop=True)


@print_style()
def draw(runs: DataFrame) -> Figure:
    """Draw the figure."""
    titles = ("tokens read $N$", "state per sequence")
    return ended_lines({"": table(runs)}, "state.length", "state.bytes", titles, in_bytes=True)
