"""Records of before a setting existed, brought up to date: the run had its default, as its identity says."""

from collections.abc import Mapping
from typing import Any

from models.settings import SettingErrors
from recallbench.resolved_model import UNDER_STUDY
from recallbench.runs import runs_of


def with_settings_of_today(record: dict[str, Any]) -> dict[str, Any]:
    """The record with all settings that its run has by today's code; as it is where that makes another run of them.

    Without it a run of before and its like of today would differ in a setting that neither was asked to change.
    """
    settings = _nested(record["config"])
    if "mixer" in settings:  # which a record's layers have written out
        settings["model"]["layers"] = [
            UNDER_STUDY if _given(layer) == _given(settings["mixer"]) else layer
            for layer in settings["model"]["layers"]
        ]
    try:
        (run,) = runs_of(settings)
    except (SettingErrors, KeyError):  # of an architecture that is gone, or measured from a run that is not here
        return record
    return {**record, "config": run.settings} if run.identity == record["identity"] else record


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that are null, as which a table and a record disagree."""
    return {name: value for name, value in settings.items() if value is not None}


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"mixer.name": ...} -> {"mixer": {"name": ...}}."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        at = nested
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return nested
