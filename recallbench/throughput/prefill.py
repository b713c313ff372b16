"""Reading prompts: a batch of them into a fresh state, up to the logits that the first token is chosen by."""

import torch
from torch import Tensor

from models import LanguageModel
from models.huggingface import HuggingFaceModel
from recallbench.throughput.graph import recorded


class Prefill:
    """One pass is one step: B prompts of N random tokens are read.

    **Arguments:** `cuda_graph`: replay a graph, on a GPU and of our own models, whose prefill leaves nothing for the
    host to decide; `in_graph` says whether it does.
    """

    steps = 1

    def __init__(
        self,
        model: LanguageModel | HuggingFaceModel,
        batch_size: int,
        prompt_length: int,
        state_dtype: torch.dtype,
        cuda_graph: bool = False,
    ):
        device = next(model.parameters()).device
        self.model, self.state_dtype = model, state_dtype
        self.prompts = torch.randint(model.config.vocab_size, (batch_size, prompt_length), device=device)  # [B, N]
        self.last = torch.full((batch_size, 1), prompt_length - 1, device=device)
        self.logits: Tensor | None = None  # [B, 1, vocabulary]
        self.graph: torch.cuda.CUDAGraph | None = None
        if cuda_graph and device.type == "cuda" and isinstance(model, LanguageModel):
            self.graph = recorded(self._read, self.restart, device)

    @property
    def tokens(self) -> int:
        """That a step reads."""
        return self.prompts.numel()

    @property
    def in_graph(self) -> bool:
        return self.graph is not None

    def restart(self) -> None:
        """Every step starts from nothing."""

    def step(self) -> None:
        if self.graph is not None:
            self.graph.replay()
            return
        self._read()

    def _read(self) -> None:
        state = self.model.init_state(len(self.prompts), dtype=self.state_dtype)
        self.logits, _ = self.model.prefill(self.prompts, state, self.last)
