"""One run in this process: what a notebook calls where a terminal would say `python -m recallbench`."""

from typing import Any

from recallbench.composition import compose, plain
from recallbench.interrupt import CannotGoOn, StopRequest
from recallbench.perform import perform
from recallbench.record import RunDirectory
from recallbench.runs import execution_of, runs_of


def run_here(*overrides: str, config_name: str = "config") -> dict[str, Any]:
    """Compose one run, carry it out unless it has a record, and return the record.

    **Arguments:** `overrides`: as at the command line, such as `"mixer=based"`, `"train.epochs=4"`; `config_name`:
    the file in conf/ that says which settings there are.
    **Raises** `SettingError` or `SettingErrors` for what is wrong with them; `CannotGoOn` where another process is at
    the run.
    """
    settings = plain(compose(overrides, config_name))
    (run,), execution = runs_of(settings), execution_of(settings)
    directory = RunDirectory(execution.runs, run.identity)
    if execution.rerun or not directory.has_record():
        run.check_weights(execution.runs)
        perform([run], execution, StopRequest())
    if not directory.has_record():
        raise CannotGoOn(f"{directory.path} is left to another process")
    return directory.record()
