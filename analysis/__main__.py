"""`python -m analysis figures RUNS --study NAME --out DIR`: every figure that the runs support."""

import argparse
import sys
from pathlib import Path

from pandas import DataFrame
from rich.console import Console

from analysis.figures import FigureModule, NotEnough, discover
from analysis.records import BrokenRecordError, NoRecordsError, load
from analysis.style import save
from analysis.tables import write_csv, write_markdown


def main() -> int:
    """Run the command line: 0, or 2 where no record is found or one is broken."""
    asked = _arguments()
    try:
        runs = load(asked.runs, study=asked.study)
    except (BrokenRecordError, NoRecordsError) as error:
        _say(Console(stderr=True), str(error))
        return 2
    asked.out.mkdir(parents=True, exist_ok=True)
    for name, figure in discover().items():
        try:
            _write(figure, runs, asked.out / name)
            _say(Console(), f"{name}: {asked.out / name}.png, .pdf, .csv, .md")
        except NotEnough as reason:
            _say(Console(), f"{name}: left out, {reason}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m analysis", description="Analyse run records.")
    figures = parser.add_subparsers(required=True).add_parser(
        "figures", help="draw every figure that the runs support, with the table behind it"
    )
    figures.add_argument(
        "runs",
        nargs="*",
        type=Path,
        default=[Path("runs")],
        help="runs directories, Parquet files or single result.json, by default runs/",
    )
    figures.add_argument("--study", help="only the runs of this study")
    figures.add_argument("--out", type=Path, default=Path("figures"), help="where to write")
    return parser.parse_args()


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
