"""The language model: embedding, residual blocks of a mixer and an optional MLP, norm, head."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, cast

import torch
import torch.nn.functional as F
from annotated_types import Len
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from kernels.cross_entropy import linear_answers, linear_cross_entropy
from models.huggingface import HuggingFaceConfig, HuggingFaceModel
from models.mixer import Mixer, State
from models.mixers import ALL_MIXERS
from models.settings import SettingError, check, construct

GAIN = 0.02 * 768**0.5
"""Weights start at a standard deviation of GAIN / sqrt(width of the input): GPT-2's 0.02 at its width of 768.

The constant 0.02 leaves the queries and keys of a model of width 32 or 64 so small that recall takes ten times as many
steps to appear.
"""


STEP_OPTIONS: dict[str, Any] = {"reorder_for_locality": False, "pattern_matcher": False}
"""For inductor: else it moves the reading of a state behind the writing, and so makes it write to a copy; and it has a
product add to the residual stream, which for one token takes longer than the sum in the kernel of the next norm.
"""


class ModelConfig(BaseModel):
    """A language model's settings.

    `layers` names the mixer of each layer, bottom to top, as `{"name": ..., setting: ...}` or as the bare name where
    the defaults serve; `repeats` stacks that pattern several times. `mlp_expand` is the hidden width of the SwiGLU MLP
    in multiples of D, 0 for no MLP.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    vocab_size: PositiveInt
    d_model: PositiveInt = 64
    layers: Annotated[Sequence[str | dict[str, Any]], Len(1)]
    repeats: PositiveInt = 1
    mlp_expand: NonNegativeFloat = 0
    norm: Literal["layer", "rms"] = "layer"
    tie_embeddings: bool = True

    @property
    def mixer_names(self) -> list[str]:
        """The mixer of every layer, bottom to top."""
        return self.repeats * [layer if isinstance(layer, str) else layer["name"] for layer in self.layers]


class MLP(nn.Module):
    """SwiGLU. Source: Shazeer 2020, arXiv 2002.05202, equation 6."""

    def __init__(self, d_model: int, width: int):
        super().__init__()
        self.in_proj = nn.Linear(d_model, 2 * width, bias=False)  # the gate, then what it gates
        self.down_proj = nn.Linear(width, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.in_proj(x).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)) where there is an MLP."""

    def __init__(self, mixer: Mixer, config: ModelConfig):
        super().__init__()
        Norm = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
        self.mixer_norm = Norm(config.d_model, eps=1e-5)
        self.mixer = mixer
        width = round(config.mlp_expand * config.d_model)
        self.mlp_norm = Norm(config.d_model, eps=1e-5) if width else None
        self.mlp = MLP(config.d_model, width) if width else None

    def forward(self, x: Tensor) -> Tensor:
        return self._mlp(x + self.mixer(self.mixer_norm(x)))

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = self.mixer.prefill(self.mixer_norm(x), state)
        return self._mlp(x + y), state

    def step(self, x: Tensor, y: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """One token: the residual stream x and what is still to be added to it y, [B, D] each, before and after.

        So the sum is where it is read, which compiled is one kernel with the norm.
        """
        x = x + y
        y, state = self.mixer.step(self.mixer_norm(x), state)
        if self.mlp is None or self.mlp_norm is None:
            return x, y, state
        x = x + y
        return x, self.mlp(self.mlp_norm(x)), state

    def _mlp(self, x: Tensor) -> Tensor:
        return x if self.mlp is None or self.mlp_norm is None else x + self.mlp(self.mlp_norm(x))


class LanguageModel(nn.Module):
    """A causal language model whose layers may each be another mixer. Its state is the list of its layers' states."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(
            Block(build_mixer(layer, config.d_model), config) for layer in config.repeats * list(config.layers)
        )
        Norm = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
        self.norm = Norm(config.d_model, eps=1e-5)
        self.head = None if config.tie_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)
        self._initialise()

    @property
    def mixer_names(self) -> list[str]:
        """The mixer of every layer, bottom to top."""
        return self.config.mixer_names

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Tokens [B, N] -> logits of the next token [B, N, vocabulary], in parallel form.

        With `positions` [B, Q], the logits at those positions alone, [B, Q, vocabulary]: where few are asked for, the
        head is most of the memory and of the operations.
        """
        return self.logits(self._hidden(tokens, positions))

    def loss(self, tokens: Tensor, positions: Tensor | None, targets: Tensor) -> Tensor:
        """The cross-entropy of the answer to each question, tokens [B, N], positions and targets [B, Q] -> [B, Q].

        Without positions every token of N is a question. It is 0 where nothing is asked (a target of -100). On a GPU
        the logits are never all in memory.
        """
        return linear_cross_entropy(self._hidden(tokens, positions), self.head_weight, targets)

    def answers(self, tokens: Tensor, positions: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss as above, without gradients, and the most likely token: [B, Q] each."""
        return linear_answers(self._hidden(tokens, positions), self.head_weight, targets)

    def trunk(self, tokens: Tensor) -> Tensor:
        """Tokens [B, N] -> the residual stream after all blocks [B, N, D], under autocast in its dtype."""
        x = self.embedding(tokens)
        kind = x.device.type
        x = x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
        for block in self._each():
            x = block(x)
        return x

    def generate_code(self) -> None:
        """Compile what `loss` runs: the trunk for each shape of tokens at its first use, the rest once."""
        torch.compiler.reset()  # what was compiled for models before this one counts against a limit of variants
        self.trunk = torch.compile(self.trunk, dynamic=False)
        self._asked = torch.compile(self._asked, dynamic=True)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., vocabulary]."""
        return F.linear(hidden, self.head_weight)

    @property
    def head_weight(self) -> Tensor:
        """[vocabulary, D], the embedding's own where the two are tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def _hidden(self, tokens: Tensor, positions: Tensor | None) -> Tensor:
        """What the head reads: [B, N, D], or at `positions` alone [B, Q, D]."""
        return self._read(self.trunk(tokens), positions)

    def _read(self, x: Tensor, positions: Tensor | None) -> Tensor:
        return self.norm(x) if positions is None else self._asked(x, positions)

    def _asked(self, x: Tensor, positions: Tensor) -> Tensor:
        return self.norm(x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1])))

    def init_state(
        self,
        batch_size: int,
        *,
        max_length: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> list[State]:
        """The state of every layer before the first token, as `Mixer.init_state`."""
        options = {"max_length": max_length, "dtype": dtype, "device": device}
        return [block.mixer.init_state(batch_size, **options) for block in self._each()]

    def prefill(
        self, tokens: Tensor, state: list[State], positions: Tensor | None = None
    ) -> tuple[Tensor, list[State]]:
        """Tokens [B, N] after `state` -> logits [B, N, vocabulary], new state; `positions` of N as in `forward`."""
        x, new = self.embedding(tokens), []
        for block, layer_state in zip(self._each(), state, strict=True):
            x, after = block.prefill(x, layer_state)
            new.append(after)
        return self.logits(self._read(x, positions)), new

    def step(self, token: Tensor, state: list[State]) -> tuple[Tensor, list[State]]:
        """One token [B] after `state` -> logits [B, vocabulary], new state."""
        return self._step(Block.step, token, state)

    def generate_step(self) -> Callable[[Tensor, list[State]], tuple[Tensor, list[State]]]:
        """Code for `step`: the same function with compiled blocks, which still update in place what they do as written.

        Blocks of one structure, with states of one shape, are compiled once, at the first call.
        """
        torch.compiler.reset()
        return partial(self._step, torch.compile(Block.step, dynamic=False, options=STEP_OPTIONS))

    def _step(
        self,
        step: Callable[[Block, Tensor, Tensor, State], tuple[Tensor, Tensor, State]],
        token: Tensor,
        state: list[State],
    ) -> tuple[Tensor, list[State]]:
        x, new = self.embedding(token), []
        y = torch.zeros_like(x)
        for block, layer_state in zip(self._each(), state, strict=True):
            x, y, after = step(block, x, y, layer_state)
            new.append(after)
        return self.logits(self.norm(x + y)), new

    def state_bytes(self, length: int, dtype: torch.dtype) -> int:
        """Bytes of state a sequence after `length` tokens, summed over layers, from shapes alone."""
        return sum(block.mixer.state_bytes(length, dtype) for block in self._each())

    def _each(self) -> Iterable[Block]:
        return cast("Iterable[Block]", self.blocks)

    def _initialise(self) -> None:
        """Normal projections and embeddings; what writes to the residual stream is scaled down by sqrt(its writers).

        Source: Radford et al. 2019 (GPT-2), section 2.3. A mixer that initialises its own parameters marks them with
        an attribute `keeps_initialisation`.
        """
        writers = sum(1 if block.mlp is None else 2 for block in self._each())
        for name, module in self.named_modules():
            if not isinstance(module, nn.Linear | nn.Embedding) or getattr(module, "keeps_initialisation", False):
                continue
            writes = name.endswith(("o_proj", "out_proj", "down_proj"))
            std = GAIN / math.sqrt(module.weight.shape[1])
            nn.init.normal_(module.weight, std=std / math.sqrt(writers) if writes else std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


def build_mixer(layer: str | Mapping[str, Any], d_model: int) -> Mixer:
    """The mixer that a layer names, its settings checked first.

    **Raises** `SettingError` or `SettingErrors` naming what is wrong: an unknown mixer, a key it lacks, a bad value.
    """
    settings = {"name": layer} if isinstance(layer, str) else dict(layer)
    name = settings.pop("name", None)
    if name not in ALL_MIXERS:
        raise SettingError("name", name, f"it must be one of {', '.join(ALL_MIXERS)}")
    return construct(ALL_MIXERS[name], {"d_model": d_model, **settings})


def build_model(
    config: ModelConfig | HuggingFaceConfig | Mapping[str, Any],
) -> LanguageModel | HuggingFaceModel:
    """The language model that a configuration describes: layers of our mixers, or by its `name` one of transformers.

    **Raises** `SettingError` or `SettingErrors` where it describes none.
    """
    if isinstance(config, Mapping):
        config = check_model(config)
    return HuggingFaceModel(config) if isinstance(config, HuggingFaceConfig) else LanguageModel(config)


def check_model(settings: Mapping[str, Any]) -> ModelConfig | HuggingFaceConfig:
    """The settings of a language model, checked: by `name` one of transformers, or else `layers`."""
    return check(HuggingFaceConfig if "name" in settings else ModelConfig, settings)
