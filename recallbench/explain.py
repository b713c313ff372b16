"""What Hydra could not read or compose, in one sentence: the setting, its value, and what would be right."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hydra.errors import OverrideParseException

NO_NAME = "Config group override must be a string"
"""How Hydra begins when a group is set to null or a number."""

SWEPT = r"(?:Ambiguous value for argument|Sweep parameters) '(\w[^=]*)=(.*)'\s"
"""How it begins of a sweep where it is to make one configuration."""


def explain(error: Exception, overrides: Sequence[str], compose: Callable[[Sequence[str]], Mapping[str, Any]]) -> str:
    """One sentence for an error of Hydra's, given the overrides that led to it.

    **Arguments:** `compose`: makes a configuration of overrides; it is asked for one without the wrong override, to
    learn which settings there are, and for one of each alone, to learn which is wrong.
    """
    message = str(error).strip()
    if named := re.match(SWEPT, message):
        return _of_a_sweep(named[1], named[2], overrides, compose)
    if named := re.search(r"Could not override '([^']+)'|Could not append .*?'([^']+)'", message):
        key = named[1] or named[2]
        return _of_no_setting(key, "No match in the defaults list" in message, overrides, compose)
    if named := re.search(r"Could not find '(.+)/([^'/]*)'", message):
        listed = message.partition("Available options in")[2].partition("Config search path")[0]
        options = re.findall(r"^\s+([\w-]+)$", listed, flags=re.MULTILINE)
        return f"{named[1]} is {named[2]!r}: it must be one of {', '.join(options)}"
    if NO_NAME in message:
        wrong = [o.partition("=") for o in overrides if _names_nothing(o, compose)]
        return "\n".join(f"{key} is {value!r}: it must be the name of a file in conf/{key}/" for key, _, value in wrong)
    if isinstance(error, OverrideParseException):
        message = f"{error.override!r} cannot be read: an override is written SETTING=VALUE"
    return " ".join(message.split())


def _of_no_setting(
    key: str, is_group: bool, overrides: Sequence[str], compose: Callable[[Sequence[str]], Mapping[str, Any]]
) -> str:
    wrong = [o for o in overrides if re.split("[=@]", o.lstrip("+~"))[0] == key]
    value = wrong[0].partition("=")[2] if wrong else ""
    if is_group:
        added = ", ".join(override for override in overrides if override.startswith("+"))
        chosen = f"{added} chooses a {key}, which is no part of this command's configuration"
        return f"{key} is {value!r}: a configuration of this group is added, as +{key}={value}" if wrong else chosen
    try:
        known = list(setting_names(compose([o for o in overrides if o not in wrong])))
    except Exception:
        known = []
    if wrong:
        return f"{key} is {value!r}: there is no such setting{_suggest(key, known)}"
    chosen = " ".join(o for o in overrides if o.lstrip("+").partition("=")[0] in ("study", key.partition(".")[0]))
    return f"{key}: an axis of the study, but no setting with {chosen}{_suggest(key, known)}"


def _of_a_sweep(
    key: str, value: str, overrides: Sequence[str], compose: Callable[[Sequence[str]], Mapping[str, Any]]
) -> str:
    # Hydra has this to say of a sweep in a study, too, whatever else is wrong there.
    rest = [override for override in overrides if override.partition("=")[0] != key]
    try:
        compose(rest)
    except Exception as other:
        return explain(other, rest, compose)
    return f"{key} is {value!r}: it must be one value; a sweep over several is asked for with -m"


def _names_nothing(override: str, compose: Callable[[Sequence[str]], Mapping[str, Any]]) -> bool:
    try:
        compose([override])
    except Exception as error:
        return NO_NAME in str(error)
    return False


def setting_names(config: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """The dotted names of all settings of a configuration."""
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from setting_names(value, f"{prefix}{key}.")


def _suggest(key: str, known: list[str]) -> str:
    if close := difflib.get_close_matches(key, known, n=1):
        return f"; did you mean {close[0]}?"
    group, _, _ = key.rpartition(".")
    beside = [name for name in known if name.rpartition(".")[0] == group]
    return f"; there are {', '.join(beside)}" if beside else ""
