"""One file a mixer: the file's name is the mixer's name in a configuration, and it defines one public `Mixer`."""

import importlib
import pkgutil

from models.mixer import Mixer


def _discover() -> dict[str, type[Mixer]]:
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        mixers = [
            value
            for name, value in vars(module).items()
            if isinstance(value, type)
            and issubclass(value, Mixer)
            and value.__module__ == module.__name__
            and not name.startswith("_")
        ]
        if len(mixers) != 1:
            names = ", ".join(m.__name__ for m in mixers) or "none"
            raise ImportError(f"{module.__name__} must define exactly one public Mixer, and it defines {names}")
        found[info.name] = mixers[0]
    return found


MIXERS: dict[str, type[Mixer]] = _discover()
"""Name -> class, for every file in this folder."""
