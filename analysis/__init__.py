"""Recall, state and cost out of run records: tables, Pareto frontiers and figures.

Reads what the runs left on disk, so it needs neither torch nor the rooms that wrote it.

    load, save, as_records          records to a table and back: one row a run
    by_slice                        one row a run and slice
    points                          one row an architecture, its learning rate chosen by validation
    at_best_learning_rate           the runs behind them, one a seed: what the statistics below start from
    with_speed                      tokens per second beside the points
    frontier                        which points nothing beats, in two or three columns
    hypervolume                     the share of a box that a frontier dominates, with an interval over seeds
    attainment                      the surfaces that 10, 50, 90 per cent of seeds attain
    dominance, sentences            where one family beats another, and at how many seeds
    matched_quality                 what it costs to be so good, with an interval over seeds
    curves                          the training curves of runs, from their logs
    from_wandb, to_wandb            old logs as runs, and a study as an artifact
    theory                          the bits that recall needs, and the accuracy that bits allow

Sizes are in bytes or bits, times in seconds, speeds in tokens per second, accuracies from 0 to 1.
"""

from analysis import theory
from analysis.architectures import at_best_learning_rate, points
from analysis.attainment import attainment
from analysis.dominance import dominance, sentences
from analysis.hypervolume import hypervolume
from analysis.logs import curves
from analysis.matched import matched_quality
from analysis.pareto import frontier
from analysis.records import BrokenRecordError, NoRecordsError, as_records, by_slice, load, save
from analysis.speed import Joined, with_speed
from analysis.wandb_export import to_wandb
from analysis.wandb_import import from_wandb

__all__ = [
    "BrokenRecordError",
    "Joined",
    "NoRecordsError",
    "as_records",
    "at_best_learning_rate",
    "attainment",
    "by_slice",
    "curves",
    "dominance",
    "from_wandb",
    "frontier",
    "hypervolume",
    "load",
    "matched_quality",
    "points",
    "save",
    "sentences",
    "theory",
    "to_wandb",
    "with_speed",
]
