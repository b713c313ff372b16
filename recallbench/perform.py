"""Giving runs of every kind their records."""

from collections.abc import Sequence

from recallbench.any_run import AnyRun
from recallbench.execute import execute as train
from recallbench.execution import ExecutionConfig
from recallbench.interrupt import StopRequest
from recallbench.recall.evaluation import Evaluation
from recallbench.recall.execute import execute as evaluate
from recallbench.run import Run
from recallbench.text.execute import execute as train_on_text
from recallbench.text.run import LanguageRun
from recallbench.throughput.execute import execute as measure
from recallbench.throughput.measurement import Measurement


def perform(runs: Sequence[AnyRun], execution: ExecutionConfig, stop: StopRequest) -> None:
    """Carry out runs of one group; **raises** as `recallbench.execute.execute` and that of `recallbench.throughput`."""
    if trainings := [run for run in runs if isinstance(run, Run)]:
        train(trainings, execution, stop)
    if texts := [run for run in runs if isinstance(run, LanguageRun)]:
        train_on_text(texts, execution, stop)
    if measurements := [run for run in runs if isinstance(run, Measurement)]:
        measure(measurements, execution, stop)
    if evaluations := [run for run in runs if isinstance(run, Evaluation)]:
        evaluate(evaluations, execution, stop)
