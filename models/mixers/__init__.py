"""One file a mixer: the file's name is the mixer's name in a configuration, and it defines one public `Mixer`."""

import torch

from models.discovery import one_class_a_file
from models.mixer import Mixer

ALL_MIXERS: dict[str, type[Mixer]] = one_class_a_file(__name__, __path__, Mixer)
"""Name -> class, for every file in this folder: what a configuration may name."""

MIXERS: dict[str, type[Mixer]] = {
    name: mixer for name, mixer in ALL_MIXERS.items() if torch.cuda.is_available() or not mixer.needs_gpu
}
"""Those that run on this machine."""
