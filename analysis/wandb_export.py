"""A study as an artifact of Weights and Biases: its records, and its figures."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pandas import DataFrame

from analysis.records import save
from analysis.wandb_runs import EXPORT, NoWandbError, WandbError

TYPE = "recallbench-study"


def to_wandb(
    runs: DataFrame,
    *,
    study: str,
    project: str = "recallbench",
    entity: str | None = None,
    files: Iterable[Path] = (),
) -> str:
    """Log the runs of `analysis.load` as an artifact, and return where it went.

    The artifact is named after the study, of type "recallbench-study", and holds STUDY.parquet, which `analysis.load`
    reads, and `files`: figures or a report, folders with all in them. wandb keeps a version for each change. It goes
    online where there is a login, else into a folder of wandb's offline mode for `wandb sync`; `WANDB_MODE` decides
    otherwise.

    **Raises** `NoWandbError`; `WandbError` for a name that wandb does not take, a missing file, or what wandb refuses.
    """
    if not re.fullmatch(r"[\w.-]{1,128}", study, re.ASCII):
        raise WandbError(f"study {study!r}: the name of an artifact is of letters, digits, '_', '-' and '.'")
    files = list(files)
    if missing := [str(file) for file in files if not file.exists()]:
        raise WandbError(f"{', '.join(missing)}: not there to be exported")
    if os.environ.get("WANDB_MODE") == "disabled":
        raise WandbError("WANDB_MODE is disabled, so nothing can be exported; online and offline would be right")
    try:
        import wandb  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise NoWandbError from error
    try:
        with TemporaryDirectory() as folder:
            table = Path(folder) / f"{study}.parquet"
            save(runs, table)
            return _log(_artifact(runs, study, [table, *files]), study, project, entity)
    except wandb.Error as error:
        raise WandbError(f"study {study!r} cannot be exported to wandb: {error}") from error


def _artifact(runs: DataFrame, study: str, files: list[Path]) -> Any:
    import wandb  # noqa: PLC0415

    artifact = wandb.Artifact(study, TYPE, metadata=_metadata(runs))
    for file in files:
        if file.is_dir():
            artifact.add_dir(str(file), name=file.name)
        else:
            artifact.add_file(str(file))
    return artifact


def _log(artifact: Any, study: str, project: str, entity: str | None) -> str:
    import wandb  # noqa: PLC0415

    with wandb.init(
        project=project,
        entity=entity,
        job_type=EXPORT,
        name=f"export-{study}",
        mode=None if "WANDB_MODE" in os.environ else "online" if wandb.api.api_key else "offline",
        settings=wandb.Settings(silent=True),
    ) as run:
        run.log_artifact(artifact)
        if not run.offline:
            artifact.wait()
        return f"{Path(run.dir).parent}, for wandb sync" if run.offline else str(run.url)


def _metadata(runs: DataFrame) -> dict[str, object]:
    versions = runs["provenance.code_version"].dropna().unique() if "provenance.code_version" in runs else []
    return {"runs": len(runs), "statuses": runs["status"].value_counts().to_dict(), "code_versions": sorted(versions)}
