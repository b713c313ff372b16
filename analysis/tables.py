"""Tables as files: CSV for programs, with every digit, and Markdown for readers."""

from pathlib import Path
from typing import Any

import pandas as pd
from pandas import DataFrame


def write_csv(table: DataFrame, path: Path) -> None:
    """Write a table as CSV."""
    table.to_csv(path, index=False, lineterminator="\n")


def write_markdown(table: DataFrame, path: Path) -> None:
    """Write a table as Markdown, numbers to four significant digits."""
    rows = [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    lines = [list(map(str, table.columns)), ["---"] * len(table.columns), *rows]
    path.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines), encoding="utf-8")


def _cell(value: Any) -> str:
    if pd.isna(value):
        return ""
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}"
    return f"{value:.0f}" if isinstance(value, float) else str(value)
