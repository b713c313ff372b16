"""Recall, state and cost out of run records: tables, Pareto frontiers and figures.

Reads what the runs left on disk, so it needs neither torch nor the rooms that wrote it.
"""

from analysis.architectures import at_best_learning_rate, points
from analysis.logs import curves
from analysis.pareto import frontier
from analysis.records import BrokenRecordError, NoRecordsError, as_records, by_slice, load, save
from analysis.wandb_export import to_wandb
from analysis.wandb_import import from_wandb

__all__ = [
    "BrokenRecordError",
    "NoRecordsError",
    "as_records",
    "at_best_learning_rate",
    "by_slice",
    "curves",
    "from_wandb",
    "frontier",
    "load",
    "points",
    "save",
    "to_wandb",
]
