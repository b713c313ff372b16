"""Reading prompts: a batch of them into a fresh state, up to the logits that the first token is chosen by."""

import torch

from models import LanguageModel
from models.huggingface import HuggingFaceModel


class Prefill:
    """One pass is one step: B prompts of N random tokens are read."""

    steps = 1
    in_graph = False

    def __init__(
        self, model: LanguageModel | HuggingFaceModel, batch_size: int, prompt_length: int, state_dtype: torch.dtype
    ):
        device = next(model.parameters()).device
        self.model, self.state_dtype = model, state_dtype
        self.prompts = torch.randint(model.config.vocab_size, (batch_size, prompt_length), device=device)  # [B, N]
        self.last = torch.full((batch_size, 1), prompt_length - 1, device=device)

    @property
    def tokens(self) -> int:
        """That a step reads."""
        return self.prompts.numel()

    def restart(self) -> None:
        """Every step starts from nothing."""

    def step(self) -> None:
        state = self.model.init_state(len(self.prompts), dtype=self.state_dtype)
        self.model.prefill(self.prompts, state, self.last)
