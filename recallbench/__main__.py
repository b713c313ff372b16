"""`python -m recallbench`: one training, or with `-m` or `+study=NAME` many. Other entry points share its `main`."""

import functools
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from models.settings import SettingError, SettingErrors
from recallbench import ranks
from recallbench.any_run import AnyRun
from recallbench.claim import holder
from recallbench.composition import CONFIGURATION, compose, plain
from recallbench.device import check_device
from recallbench.execution import ExecutionConfig
from recallbench.explain import NO_NAME, explain
from recallbench.interrupt import CannotGoOn, Stopped, StopRequest, deadline, stop_on_signals
from recallbench.progress import describe, watch
from recallbench.record import RunDirectory
from recallbench.runs import execution_of, runs_of


def run(config: DictConfig) -> None:
    """One composed configuration: a run at the command line, or a job of a study, whose members train together."""
    settings = plain(config)
    runs, execution = runs_of(settings), execution_of(settings)
    stopping = stop_on_signals(deadline=deadline(execution.sweep.time_budget))
    if settings["members"]:  # the study has a bar of its own, and the last word
        with stopping as stop:
            _perform(runs, execution, stop)
        return
    console = Console(quiet=ranks.rank() > 0)
    directory = RunDirectory(execution.runs, runs[0].identity)
    label = f"{runs[0].family} {directory.path}"
    if directory.has_record() and not execution.rerun:
        console.print(describe(directory.record(), label), highlight=False, soft_wrap=True)
        console.print("it has a record already; rerun=true runs it again")
        return
    check_device(runs, execution)
    runs[0].check_weights(execution.runs)
    with watch({label: directory}, console, runs[0].family), stopping as stop:
        _perform(runs, execution, stop)
    if directory.has_record() or ranks.rank() > 0:
        return
    if stop.out_of_time:
        console.print("the time budget is over, everything saved; the same command goes on from here")
    else:
        training = RunDirectory(execution.runs, runs[0].trained.identity)
        by = holder(directory.path) or holder(training.path) or "another process"
        raise CannotGoOn(f"{label} is left to {by}")


def _perform(runs: Sequence[AnyRun], execution: ExecutionConfig, stop: StopRequest) -> None:
    """As `perform`, but the end of the time budget is an end as good as any."""
    from recallbench.perform import perform  # noqa: PLC0415 - torch's compiler: a study leaves it to its workers

    if stop.out_of_time:
        return
    try:
        perform(runs, execution, stop)
    except Stopped:
        if not stop.out_of_time or stop.signal is not None:
            raise


def main(config_name: str = "config") -> None:
    """The command line. What is wrong with a configuration is said in a sentence a line, and ends with status 2.

    **Arguments:** `config_name`: the file in conf/ that says which settings there are.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here rather than to Hydra's printer
    console = Console(stderr=True)
    wrong: list[Exception] = []

    def task(config: DictConfig) -> None:
        try:
            run(config)
        except (
            SettingError,
            SettingErrors,
            CannotGoOn,
        ) as error:  # kept from Hydra, which would print the overrides before it
            wrong.append(error)

    overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    try:
        if nameless := [override for override in overrides if override.startswith("=")]:
            raise SettingError("an override", nameless[0], "it must be written SETTING=VALUE")
        hydra.main(config_path=str(CONFIGURATION), config_name=config_name, version_base="1.3")(task)()
        for error in wrong:
            raise error
    except (SettingError, SettingErrors) as error:
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except CannotGoOn as error:
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if type(error) is ValueError and NO_NAME not in str(error):
            raise  # a bug of ours; Hydra has no exception of its own for a group set to null
        console.print(
            explain(error, overrides, functools.partial(_compose, config_name)),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(2)
    except KeyboardInterrupt:  # `Stopped` in training, or a plain one between two jobs, which has nothing to save
        console.print("stopped, everything saved; the same command goes on from here")
        sys.exit(130)


def _compose(config_name: str, overrides: Sequence[str]) -> Mapping[str, Any]:
    composed = compose(overrides, config_name)
    return OmegaConf.to_container(composed, resolve=False)  # pyright: ignore[reportReturnType] - a mapping at its root


if __name__ == "__main__":
    main()
