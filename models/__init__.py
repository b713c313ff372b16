"""Mixers in parallel and recurrent form, and the language model around them."""

from models.language_model import LanguageModel, ModelConfig, build_model
from models.mixer import Mixer
from models.mixers import MIXERS

__all__ = ["MIXERS", "LanguageModel", "Mixer", "ModelConfig", "build_model"]
