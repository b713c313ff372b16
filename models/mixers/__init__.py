"""One file a mixer: the file's name is the mixer's name in a configuration, and it defines one public `Mixer`."""

from models.discovery import one_class_a_file
from models.mixer import Mixer

MIXERS: dict[str, type[Mixer]] = one_class_a_file(__name__, __path__, Mixer)
"""Name -> class, for every file in this folder."""
