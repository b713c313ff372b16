"""`python -m recallbench`: one run, or with `-m` or `+study=NAME` many."""

import os
import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from models.settings import SettingError, SettingErrors
from recallbench.config import execution_of, plain, runs_of
from recallbench.explain import explain
from recallbench.interrupt import Stopped, stop_on_signals


def run(config: DictConfig) -> None:
    """Carry out the run, or the members, of one composed configuration."""
    from recallbench.execute import execute  # noqa: PLC0415 - after the configuration is known to be right

    settings = plain(config)
    runs, execution = runs_of(settings), execution_of(settings)
    with stop_on_signals() as stop:
        execute(runs, execution, stop)


def run_watched(config: DictConfig) -> None:
    """`run` for one run at the command line, with a bar and a line at the end."""
    from recallbench.progress import describe, watch  # noqa: PLC0415
    from recallbench.record import RunDirectory  # noqa: PLC0415

    settings = plain(config)
    if settings["members"]:  # a job of a study, which has a bar of its own
        return run(config)
    (single,), execution = runs_of(settings), execution_of(settings)
    directory = RunDirectory(execution.runs, single)
    console = Console()
    label = f"{single.family} {directory.path}"
    if directory.has_record() and not execution.rerun:
        console.print(describe(directory.record(), label), highlight=False, soft_wrap=True)
        console.print("it has a record already; rerun=true runs it again")
        return None
    with watch({label: directory}, console, single.family):
        run(config)
    if directory.record()["status"] == "failed":
        sys.exit(1)
    return None


def main() -> None:
    """The command line: what is wrong with a configuration is said in a sentence a line, and ends with status 2."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here rather than to Hydra's printer
    console = Console(stderr=True)
    application = hydra.main(config_path="../conf", config_name="config", version_base="1.3")(run_watched)
    try:
        application()
    except (SettingError, SettingErrors) as error:
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except (HydraException, OmegaConfBaseException) as error:
        console.print(explain(error, sys.argv[1:]), markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except Stopped:
        console.print("stopped, everything saved; the same command goes on from here")
        sys.exit(130)


if __name__ == "__main__":
    main()
