"""From a composed configuration to its runs, of whichever kind.

With a part `throughput` it asks for a measurement. Else the task decides: `lm` asks for the training of a language
model, those of `recallbench.recall` for an evaluation, every other for a training. Each kind is a module with these
three functions.
"""

from collections.abc import Sequence

from recallbench import run as training
from recallbench.any_run import AnyRun, Settings
from recallbench.execution import ExecutionConfig
from recallbench.recall import evaluation
from recallbench.text import run as language
from recallbench.throughput import measurement


def resolve(config: Settings) -> AnyRun:
    """The run that a composed configuration describes. **Raises** `SettingErrors`."""
    return _kind(config).resolve(config)


def runs_of(config: Settings) -> Sequence[AnyRun]:
    """The runs of a configuration: one, or those of its `members`. **Raises** `SettingErrors`."""
    return _kind(config).runs_of(config)


def execution_of(config: Settings) -> ExecutionConfig:
    """The part of a configuration that changes no result. **Raises** `SettingErrors`."""
    return _kind(config).execution_of(config)


def _kind(config: Settings):
    if "throughput" in config:
        return measurement
    task = (config.get("task") or {}).get("name")
    if task in evaluation.TASKS:
        return evaluation
    return language if task == language.NAME else training
