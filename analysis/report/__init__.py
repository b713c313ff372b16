"""A study as one HTML file: the interactive frontier, the table, the figures, where it all comes from.

The file needs no network and no server: plotly, the page's own script and the data are in it. What
configurations say reaches the page as data only: JSON that cannot end its script element, and
escaped HTML. Its Content-Security-Policy lets no other script run and nothing be fetched.
"""

import base64
import html
import json
import os
from hashlib import sha256
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from string import Template
from typing import Any

import matplotlib as mpl
from pandas import DataFrame, Series

from analysis.figures import FigureModule, NotEnough, discover
from analysis.report.data import page_data
from analysis.style import print_style

_MANY = 300
"""Architecture points beyond which the labels of static figures are neither readable nor soon placed."""


class NoPlotlyError(ImportError):
    """plotly, which is an extra, is not installed."""

    def __init__(self):
        super().__init__("a report needs plotly: pip install 'recallbench[report]'")


def write(runs: DataFrame, curves: DataFrame, path: Path, *, title: str) -> None:
    """Write the report of the runs of `analysis.load`; the file appears whole.

    `curves` is that of `analysis.curves`, and may be empty or about other runs too.

    **Raises** `NoPlotlyError`; `NotEnough` where no run is completed.
    """
    page = render(runs, curves, title=title)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(page, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def render(runs: DataFrame, curves: DataFrame, *, title: str) -> str:
    """The report as a page; equal runs and curves give an equal page."""
    data = page_data(runs, curves)
    here = files(__name__)
    scripts = {"plotly": _plotly(), "script": here.joinpath("page.js").read_text("utf-8")}
    return Template(here.joinpath("page.html").read_text("utf-8")).substitute(
        title=html.escape(title),
        policy=_policy(scripts.values()),
        style=here.joinpath("page.css").read_text("utf-8"),
        data=json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        summary=html.escape(_summary(runs)),
        figures=_figures(runs, len(set(data["runs"]["point"]))),
        provenance=_provenance(runs),
        unfinished=_not_completed(runs),
        **scripts,
    )


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise NoPlotlyError from error
    return get_plotlyjs()


def _policy(scripts: Any) -> str:
    """Scripts by their hashes only; WebGL code is compiled by plotly on the page, which needs eval."""
    hashes = (base64.b64encode(sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    inline = "style-src 'unsafe-inline'; img-src data: blob:"
    return f"default-src 'none'; script-src {allowed} 'unsafe-eval'; {inline}"


def _summary(runs: DataFrame) -> str:
    statuses = runs["status"].value_counts()
    return ", ".join(f"{count} {'run' if count == 1 else 'runs'} {status}" for status, count in statuses.items())


def _figures(runs: DataFrame, points: int) -> str:
    if points > _MANY:
        return f"<p>Left out: labels for {points} points would not be readable.</p>"
    return "".join(_figure(name.replace("_", " "), module, runs) for name, module in discover().items())


def _figure(name: str, module: FigureModule, runs: DataFrame) -> str:
    try:
        figure = module.draw(runs)
    except NotEnough as reason:
        return f"<p>{html.escape(name)}: left out, {html.escape(str(reason))}.</p>"
    # As an image of its own, so that neither names nor scripts of one document meet those of another.
    drawn = BytesIO()
    with print_style(), mpl.rc_context({"svg.hashsalt": "recallbench"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    source = f"data:image/svg+xml;base64,{base64.b64encode(drawn.getvalue()).decode()}"
    says = html.escape((module.__doc__ or name).partition("\n")[0])
    width = figure.get_figwidth() * 1.5
    image = f'<img src="{source}" alt="{says}" style="width: {width:.2f}in">'
    return f"<figure>{image}<figcaption>{says}</figcaption></figure>"


def _provenance(runs: DataFrame) -> str:
    """Each column of provenance, with how many runs have each value; times as a span."""
    prefix = "provenance."
    rows = {}
    for column in (str(name) for name in runs if str(name).startswith(prefix)):
        values = runs.loc[:, column].dropna()
        if len(values):
            rows[column.removeprefix(prefix)] = _span(values) if column.endswith(".time") else _counted(values)
    cells = (f"<tr><th scope=row>{html.escape(name)}</th><td>{said}</td></tr>" for name, said in rows.items())
    return f"<table>{''.join(cells)}</table>" if rows else "<p>These runs do not say where they come from.</p>"


def _span(times: Series) -> str:
    return html.escape(" to ".join(dict.fromkeys([str(times.min()), str(times.max())])))


def _counted(values: Series) -> str:
    counts = values.map(str).value_counts()
    told = [f"{html.escape(str(value))} ({count} runs)" for value, count in counts.head(5).items()]
    more = [f"and {len(counts) - 5} others"] if len(counts) > 5 else []
    return html.escape(str(counts.index[0])) if len(counts) == 1 else ", ".join([*told, *more])


def _not_completed(runs: DataFrame) -> str:
    rest = runs.loc[runs["status"] != "completed", ["identity", "family", "status", "reason"]]
    if rest.empty:
        return ""
    rows = "".join(
        f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>"
        for row in rest.itertuples(index=False)
    )
    head = "".join(f"<th scope=col>{name}</th>" for name in rest)
    return f"<h2>Not completed</h2><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
