"""Registries made from folders: adding a file adds an entry."""

import importlib
import pkgutil
from collections.abc import Iterable
from typing import TypeVar

Kind = TypeVar("Kind")


def one_class_a_file(package: str, path: Iterable[str], kind: type[Kind]) -> dict[str, type[Kind]]:
    """File name -> the one public subclass of `kind` that the file defines, for every file of a package.

    **Raises** `ImportError` where a file defines none or several: names starting with an underscore do not count.
    """
    found: dict[str, type[Kind]] = {}
    for info in pkgutil.iter_modules(path):
        module = importlib.import_module(f"{package}.{info.name}")
        classes = [
            value
            for name, value in vars(module).items()
            if isinstance(value, type)
            and issubclass(value, kind)
            and value.__module__ == module.__name__
            and not name.startswith("_")
        ]
        if len(classes) != 1:
            names = ", ".join(c.__name__ for c in classes) or "none"
            raise ImportError(f"{module.__name__} must define exactly one public {kind.__name__}; it defines {names}")
        found[info.name] = classes[0]
    return found
