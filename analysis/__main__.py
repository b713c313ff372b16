"""`python -m analysis figures RUNS --study NAME --out DIR`, and `report`: what the runs support, drawn."""

import argparse
import sys
from pathlib import Path

from pandas import DataFrame
from rich.console import Console

from analysis import report
from analysis.figures import FigureModule, NotEnough, discover
from analysis.logs import curves
from analysis.records import BrokenRecordError, NoRecordsError, load
from analysis.style import save
from analysis.tables import write_csv, write_markdown


def main() -> int:
    """Run the command line: 0, or 2 with a sentence where what was asked for cannot be had."""
    asked = _arguments()
    try:
        asked.command(asked)
    except (BrokenRecordError, NoRecordsError, NotEnough, report.NoPlotlyError) as error:
        _say(Console(stderr=True), str(error))
        return 2
    return 0


def _figures(asked: argparse.Namespace) -> None:
    runs = load(asked.runs, study=asked.study)
    asked.out.mkdir(parents=True, exist_ok=True)
    for name, figure in discover().items():
        try:
            _write(figure, runs, asked.out / name)
            _say(Console(), f"{name}: {asked.out / name}.png, .pdf, .csv, .md")
        except NotEnough as reason:
            _say(Console(), f"{name}: left out, {reason}")


def _report(asked: argparse.Namespace) -> None:
    runs = load(asked.runs, study=asked.study)
    title = asked.study or ", ".join(sorted(runs["study"].dropna().unique())) or "runs"
    report.write(runs, curves(asked.runs), asked.out, title=title)
    _say(Console(), f"report: {asked.out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m analysis", description="Analyse run records.")
    commands = parser.add_subparsers(required=True)
    figures = commands.add_parser("figures", help="draw every figure that the runs support, with the table behind it")
    _of_runs(figures, _figures, out=Path("figures"))
    page = commands.add_parser("report", help="write one HTML file to explore the runs in, without network or server")
    _of_runs(page, _report, out=Path("report.html"))
    return parser.parse_args()


def _of_runs(parser: argparse.ArgumentParser, command: object, out: Path) -> None:
    """What every command over runs takes."""
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        default=[Path("runs")],
        help="runs directories, Parquet files or single result.json, by default runs/",
    )
    parser.add_argument("--study", help="only the runs of this study")
    parser.add_argument("--out", type=Path, default=out, help="where to write, by default %(default)s")
    parser.set_defaults(command=command)


def _write(figure: FigureModule, runs: DataFrame, stem: Path) -> None:
    drawn, table = figure.draw(runs), figure.table(runs)
    for suffix in (".png", ".pdf"):
        save(drawn, stem.with_suffix(suffix))
    write_csv(table, stem.with_suffix(".csv"))
    write_markdown(table, stem.with_suffix(".md"))


def _say(console: Console, sentence: str) -> None:
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
