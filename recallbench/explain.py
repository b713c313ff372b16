"""What Hydra could not read or compose, in one sentence: the setting, its value, and what would be right."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from hydra.errors import HydraException


def explain(error: Exception, overrides: Iterable[str], known: Iterable[str] = ()) -> str:
    """One sentence for an error of Hydra's.

    **Arguments:** `overrides`: those given; `known`: the dotted names of the settings there are, to suggest one.
    """
    message = str(error).strip()
    if named := re.search(r"Could not override '([^']+)'", message):
        key = named[1]
        value = next((o.split("=", 1)[1] for o in overrides if o.lstrip("+~").startswith(f"{key}=")), None)
        return f"{key} is {value!r}: there is no such setting{_suggest(key, known)}"
    if named := re.search(r"Could not find '([^']+)/([^'/]+)'", message):
        options = re.findall(r"^\t(\S+)", message, flags=re.M)
        return f"{named[1]} is {named[2]!r}: it must be one of {', '.join(options)}"
    if named := re.search(r"(?:No match in the defaults list|Could not override) [^']*'?([\w./@]+)", message):
        return f"{named[1]}: {message.splitlines()[0]}"
    return " ".join(message.split())


def setting_names(config: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """The dotted names of all settings of a configuration."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from setting_names(value, f"{prefix}{key}.")
        yield f"{prefix}{key}"


def _suggest(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


__all__ = ["HydraException", "explain", "setting_names"]
