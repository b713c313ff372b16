"""Where a model that is evaluated comes from: a training of ours, a model of transformers, a published checkpoint."""

import functools
import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from models import LanguageModel, ModelConfig, build_model
from models.based_checkpoint import load_released
from models.huggingface import HuggingFaceConfig, HuggingFaceModel
from models.language_model import check_model
from models.settings import SettingError, check
from recallbench.record import RunDirectory

Model = LanguageModel | HuggingFaceModel

RELEASED = "gpt2"
"""The tokeniser of the Based authors' releases."""

FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.tiktoken"]
"""What is fetched of a model on the hub; where there are no safetensors, what torch has pickled instead."""


class TrainedConfig(BaseModel):
    """`run`: the identity of a training, or its first characters; its record is in the folder of run records.

    Its weights are there, too, unless the record was imported: then what it was asked elsewhere is known, no more.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    run: str


class CheckpointConfig(BaseModel):
    """`checkpoint`: a folder or hub model of the Based authors' form, with its `revision`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    checkpoint: str
    revision: str | None = None


@dataclass(frozen=True)
class Source:
    """A model and all that names it."""

    config: Any  # as it was given, checked
    architecture: ModelConfig | HuggingFaceConfig | None  # None where the weights alone say it
    family: str
    settings: dict[str, Any]  # by dotted name, for the record
    essence: dict[str, Any]  # what names the weights: a digest of their content, or the training that made them
    tokenizer: str | None  # what `load_tokenizer` takes, where the source says it
    folder: Path  # of the weights

    def build(self, device: torch.device, dtype: torch.dtype) -> Model:
        """The model with its weights. **Raises** `ValueError` where they do not match."""
        if isinstance(self.config, CheckpointConfig):
            model = load_released(self.folder)
        elif isinstance(self.config, TrainedConfig):
            assert self.architecture is not None
            model = build_model(self.architecture)
            weights = torch.load(self.folder / "weights.pt", map_location="cpu", weights_only=True)
            absent = model.load_state_dict(weights, strict=False).missing_keys
            if left := sorted(set(absent) & {name for name, _ in model.named_parameters()}):
                raise ValueError(f"{self.folder} has no weights for {', '.join(left)}")
        else:
            model = build_model(self.config)
        return model.to(device, dtype).eval().requires_grad_(False)

    def has_weights(self) -> bool:
        """Whether it can be built."""
        return not isinstance(self.config, TrainedConfig) or (self.folder / "weights.pt").exists()

    def prefix(self) -> list[int]:
        """The tokens that the model's own tokeniser puts before a text."""
        if not isinstance(self.config, HuggingFaceConfig):
            return []
        import transformers  # noqa: PLC0415 - an extra, and slow to import

        return list(transformers.AutoTokenizer.from_pretrained(self.folder)("")["input_ids"])

    def longest(self) -> int | None:
        """Tokens that it can read at most, where something limits it."""
        if not isinstance(self.config, HuggingFaceConfig):
            return None
        with torch.device("meta"):
            model = build_model(self.config)
        assert isinstance(model, HuggingFaceModel)
        return getattr(model.architecture, "max_position_embeddings", None)


def resolve_source(group: Mapping[str, Any], runs: str) -> Source:
    """The source that the configuration group `model` describes.

    **Raises** `SettingError` or `SettingErrors` where it is none from which weights can be had.
    """
    settings = {key: value for key, value in group.items() if key != "family"}
    label = group.get("family")
    if "run" in settings:
        return _trained(check(TrainedConfig, settings), label, runs)
    if "checkpoint" in settings:
        return _released(check(CheckpointConfig, settings), label)
    if "name" in settings:
        return _hub(settings, label)
    expected = "an evaluation needs weights: model=trained, model=huggingface or model=checkpoint"
    raise SettingError("layers", settings.get("layers"), expected)


def _trained(config: TrainedConfig, label: str | None, runs: str) -> Source:
    directory = _training(config.run, runs)
    record: dict[str, Any] = directory.record() if directory.has_record() else {"status": "not done"}
    if record["status"] != "completed":
        raise SettingError("run", config.run, f"it must have completed, and its status is {record['status']}")
    settings = record["config"]
    own = {key.removeprefix("model."): value for key, value in settings.items() if key.startswith("model.")}
    architecture = check_model({key: value for key, value in own.items() if key != "family"})
    if isinstance(architecture, HuggingFaceConfig):
        architecture = architecture.model_copy(update={"pretrained": False})
    told = {
        key: value for key, value in settings.items() if key.startswith(("model.", "mixer.", "train.")) or key == "seed"
    }
    return Source(
        config,
        architecture,
        label or record["family"],
        {**told, "model.run": directory.identity},
        {"run": directory.identity},
        settings.get("corpus.tokenizer"),
        directory.path,
    )


def _training(run: str, runs: str) -> RunDirectory:
    """The one training whose identity begins so; where none has weights, of those whose record was imported."""
    begins = sorted(path for path in Path(runs).glob(f"{run}*") if path.is_dir()) if run else []
    found = [path for path in begins if (path / "weights.pt").exists()]
    if not found:
        imported = [RunDirectory(runs, path.name) for path in begins if (path / "result.json").exists()]
        found = [each.path for each in imported if _is_training(each.record()["config"])]
    if len(found) != 1:
        expected = "it must be the identity of a completed run" if not found else "it must name one run alone"
        raise SettingError("run", run, f"{expected} in {runs}")
    return RunDirectory(runs, found[0].name)


def _is_training(settings: Mapping[str, Any]) -> bool:
    return settings.get("train.learning_rate") is not None and settings.get("model.run") is None


def _released(config: CheckpointConfig, label: str | None) -> Source:
    folder = fetch("checkpoint", config.checkpoint, config.revision)
    settings = {f"model.{key}": value for key, value in config.model_dump().items()}
    family = label or Path(config.checkpoint).name
    return Source(config, None, family, settings, {"weights": _weights_digest(folder)}, RELEASED, folder)


def _hub(settings: Mapping[str, Any], label: str | None) -> Source:
    given = check(HuggingFaceConfig, {"vocab_size": 1, **settings})
    if not given.pretrained:
        raise SettingError("pretrained", False, "an evaluation needs weights: it must be true")
    with torch.device("meta"):
        build_model(given)  # is there such a model, in a library that is installed?
    folder = fetch("name", given.name, given.revision)
    told = {f"model.{key}": value for key, value in given.model_dump(exclude={"vocab_size"}).items()}
    family = label or Path(given.name).name
    return Source(given, given, family, told, {"weights": _weights_digest(folder)}, str(folder), folder)


def fetch(setting: str, name: str, revision: str | None) -> Path:
    """A folder as it is, or that to which a model of the hub has been downloaded. **Raises** `SettingError`."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or name.startswith("."):
        raise SettingError(setting, name, "there is no such folder")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise SettingError(setting, name, "there is no such folder; the hub needs pip install 'recallbench[recall]'")
    import huggingface_hub  # noqa: PLC0415 - an extra

    try:
        found = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=FILES))
        if not any(found.glob("*.safetensors")):
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns="*.bin")
        return found
    except Exception as error:  # of the hub's own kinds, of the network's, of an ill-formed name
        reason = str(error).strip().partition("\n")[0]
        raise SettingError(
            setting, name, f"it must be a folder or a model on the hub that can be reached; {reason}"
        ) from None


def _weights_digest(folder: Path) -> str:
    """Of the weights and the architecture, whatever their path. **Raises** `SettingError` where there are none."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise SettingError("checkpoint", str(folder), "it must have weights: *.safetensors or *.bin")
    told = [*files, *folder.glob("config.json")]
    return _digest(tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in told))


@functools.lru_cache(maxsize=64)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    content = hashlib.sha256()
    for path, _, _ in files:
        with path.open("rb") as file:
            content.update(hashlib.file_digest(file, "sha256").digest())
    return content.hexdigest()[:16]
