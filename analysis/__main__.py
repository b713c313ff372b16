"""`python -m analysis COMMAND RUNS --study NAME --out WHERE`: figures and a report of runs; to and from wandb."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from pandas import DataFrame
from rich.console import Console

from analysis import report
from analysis.figures import FigureModule, NotEnough, discover
from analysis.logs import curves
from analysis.records import BrokenRecordError, NoRecordsError, load
from analysis.records import save as save_records
from analysis.style import save
from analysis.tables import write_csv, write_markdown
from analysis.wandb_export import to_wandb
from analysis.wandb_import import from_wandb
from analysis.wandb_runs import NoWandbError, WandbError

Command = Callable[[argparse.Namespace], None]

_SENTENCES = (BrokenRecordError, NoRecordsError, NotEnough, report.NoPlotlyError, NoWandbError, WandbError)
"""What a sentence says enough about."""


def main() -> int:
    """Run the command line: 0, or 2 with a sentence where what was asked for cannot be had."""
    asked = _arguments()
    try:
        asked.command(asked)
    except _SENTENCES as error:
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


def _import_wandb(asked: argparse.Namespace) -> None:
    if asked.out.exists():
        raise WandbError(f"{asked.out} exists and is not written over")
    runs = from_wandb(asked.sources, keys=dict(asked.key), study=asked.study)
    save_records(runs, asked.out)
    _say(Console(), f"{len(runs)} runs: {asked.out}")


def _export_wandb(asked: argparse.Namespace) -> None:
    runs = load(asked.runs, study=asked.study)
    where = to_wandb(runs, study=asked.study, project=asked.project, entity=asked.entity, files=asked.files)
    _say(Console(), f"{len(runs)} runs: {where}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m analysis", description="Analyse run records.")
    commands = parser.add_subparsers(required=True)

    figures = commands.add_parser("figures", help="draw every figure that the runs support, with the table behind it")
    _of_runs(figures, _figures)
    figures.add_argument("--out", type=Path, default=Path("figures"), help="where to write")

    page = commands.add_parser("report", help="write one HTML file to explore the runs in, without network or server")
    _of_runs(page, _report)
    page.add_argument("--out", type=Path, default=Path("report.html"), help="where to write")

    old = commands.add_parser("import-wandb", help="write runs of wandb as a Parquet file for the other commands")
    old.add_argument("sources", nargs="+", help="ENTITY/PROJECT, or a folder or .wandb file of wandb's offline mode")
    old.add_argument(
        "--key",
        action="append",
        default=[],
        type=_pair,
        metavar="OURS=THEIRS",
        help="where a column comes from, as in accuracy=valid/accuracy; may be given several times",
    )
    old.add_argument("--study", help="the study that the runs are of, from now on")
    old.add_argument("--out", type=Path, required=True, help="where to write")
    old.set_defaults(command=_import_wandb)

    export = commands.add_parser("export-wandb", help="log a study as an artifact of wandb")
    _of_runs(export, _export_wandb, one_study=True)
    export.add_argument("--project", default="recallbench", help="of wandb, by default recallbench")
    export.add_argument("--entity", help="of wandb, by default your own")
    export.add_argument("--files", nargs="*", type=Path, default=[], help="figures, reports or folders to go with it")
    return parser.parse_args()


def _pair(text: str) -> tuple[str, str]:
    ours, equals, theirs = text.partition("=")
    if not (ours and equals and theirs):
        raise argparse.ArgumentTypeError(f"{text!r} is not OURS=THEIRS, as in accuracy=valid/accuracy")
    return ours, theirs


def _of_runs(parser: argparse.ArgumentParser, command: Command, *, one_study: bool = False) -> None:
    """What every command over runs takes."""
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        default=[Path("runs")],
        help="runs directories, Parquet files or single result.json, by default runs/",
    )
    parser.add_argument("--study", required=one_study, help="only the runs of this study")
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
