"""Any causal language model of transformers behind the interface of ours, its state being its cache object."""

import copy
import importlib.util
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn

from kernels.cross_entropy import cross_entropy
from models.settings import SettingError


class HuggingFaceConfig(BaseModel):
    """`name`: a folder, or a model on the hub, with its `revision`.

    `pretrained`: start from its weights rather than from random ones. `trust_remote_code`: run code that comes with
    the checkpoint. `vocab_size`: how many of its tokens a task uses.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str
    revision: str | None = None
    pretrained: bool = True
    trust_remote_code: bool = False
    vocab_size: PositiveInt


class HuggingFaceModel(nn.Module):
    """A causal language model from transformers.

    **Raises** `SettingError` where transformers is missing, knows no such model, or has too small a vocabulary.
    """

    def __init__(self, config: HuggingFaceConfig):
        super().__init__()
        self.config = config
        if importlib.util.find_spec("transformers") is None:
            raise SettingError("name", config.name, "it needs transformers: pip install 'recallbench[hf]'")
        import transformers  # noqa: PLC0415 - an extra, and slow to import

        source: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
        try:
            architecture = _architecture(config.name, **source)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise SettingError("name", config.name, f"it must be a folder or a hub model; {reason}") from None
        if config.vocab_size > architecture.vocab_size:
            expected = f"its vocabulary has {architecture.vocab_size} tokens, and the task uses {config.vocab_size}"
            raise SettingError("name", config.name, expected)
        kind = transformers.AutoModelForCausalLM
        if config.pretrained and torch.get_default_device().type != "meta":
            self.model = kind.from_pretrained(config.name, **source)
        else:
            self.model = kind.from_config(architecture, trust_remote_code=config.trust_remote_code)
        self.model.eval()
        self.architecture = architecture

    @property
    def mixer_names(self) -> list[str]:
        """One name a layer of the cache: the kind of state that transformers keeps for it."""
        if self._of_fla:
            return self.architecture.num_hidden_layers * [self.architecture.model_type]
        return [type(layer).__name__ for layer in self._cache().layers]

    @property
    def embedding(self) -> nn.Embedding:
        """Of tokens."""
        table: Any = self.model.get_input_embeddings()
        return table

    @property
    def head_weight(self) -> Tensor:
        """[vocabulary, D], the embedding's own where the two are tied."""
        head: Any = self.model.get_output_embeddings()
        return head.weight

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Tokens [B, N] -> logits [B, N, vocabulary], or at `positions` [B, Q] alone, [B, Q, vocabulary]."""
        if positions is None:
            return self.model(tokens, use_cache=False).logits
        return self._at(positions, self.model.base_model(tokens, use_cache=False).last_hidden_state)

    def loss(self, tokens: Tensor, positions: Tensor | None, targets: Tensor) -> Tensor:
        """As `LanguageModel.loss`."""
        return cross_entropy(self(tokens, positions), targets)

    def answers(self, tokens: Tensor, positions: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As `LanguageModel.answers`."""
        logits = self(tokens, positions)
        return cross_entropy(logits, targets), logits.argmax(-1)

    def init_state(
        self,
        batch_size: int,
        *,
        max_length: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Any:
        """An empty cache, which takes its shapes, device and dtype from the first tokens, and grows."""
        if dtype not in (None, self.model.dtype):
            raise ValueError(f"the state of {self.config.name} is {self.model.dtype}, as its weights are, not {dtype}")
        return self._cache()

    def prefill(self, tokens: Tensor, state: Any, positions: Tensor | None = None) -> tuple[Tensor, Any]:
        """Tokens [B, N] after `state`, which is left as it was -> logits as `forward`, new state."""
        state = copy.deepcopy(state)
        options = {"use_cache": True, self._cache_argument(): state}
        if positions is None:
            return self.model(tokens, **options).logits, state
        return self._at(positions, self.model.base_model(tokens, **options).last_hidden_state), state

    def step(self, token: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One token [B] after `state`, which is updated in place -> logits [B, vocabulary], new state."""
        output = self.model(token[:, None], use_cache=True, **{self._cache_argument(): state})
        return output.logits[:, -1], state

    def _at(self, positions: Tensor, x: Tensor) -> Tensor:
        """Logits at positions [B, Q] of what the head reads [B, N, D]: [B, Q, vocabulary]."""
        head: Any = self.model.get_output_embeddings()
        return head(x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1])))

    @property
    def _of_fla(self) -> bool:
        """Whether it is a model of flash-linear-attention, which has a cache of its own."""
        return type(self.model).__module__.startswith("fla.")

    def _cache(self) -> Any:
        if self._of_fla:
            from fla.models.utils import Cache  # noqa: PLC0415

            return Cache()
        from transformers import DynamicCache  # noqa: PLC0415

        return DynamicCache(config=self.architecture)

    def _cache_argument(self) -> str:
        return (
            "cache_params" if self.model.config.model_type.startswith(("mamba", "falcon_mamba")) else "past_key_values"
        )


def _architecture(name: str, **source: Any) -> Any:
    """The configuration of a model. Those of flash-linear-attention are known to transformers once it is imported."""
    import transformers  # noqa: PLC0415

    try:
        return transformers.AutoConfig.from_pretrained(name, **source)
    except ValueError:
        if importlib.util.find_spec("fla") is None:
            raise
        import fla.models  # noqa: F401, PLC0415

        return transformers.AutoConfig.from_pretrained(name, **source)
