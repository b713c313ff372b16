"""Generating: a token at a time for all rows of a batch, each step the model's and the choice of the next token.

On a GPU a step is a CUDA graph where the state allows it. A graph reads and writes tensors that stay where they are, so
what a mixer returns in new tensors is copied back into the old ones. The steps of our own blocks are compiled for it:
each of their small kernels, of which a block has a dozen, takes a microsecond or more even in a graph, and joined they
are few.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves

from models import LanguageModel
from models.huggingface import HuggingFaceModel
from recallbench.throughput.graph import recorded


def sample(logits: Tensor, temperature: float) -> Tensor:
    """A token a row, logits [B, vocabulary] -> [B]: the most likely one at temperature 0, else drawn.

    Drawn by the Gumbel-max trick, which unlike `torch.multinomial` leaves nothing for the host to decide:
    argmax of log p - log e has the distribution p where e are exponential.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    return (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)


def overwrite(old: Any, new: Any) -> None:
    """Copy a state's tensors, or those of a state of one row, into those of another, which stay where they are."""
    for a, b in zip(tree_leaves(old), tree_leaves(new), strict=True):
        if a.data_ptr() != b.data_ptr():
            a.copy_(b)


class Decoder:
    """One pass is `generate` steps of B rows behind one prompt of N random tokens, the same for all.

    The prompt is read once, as one row, and its state copied to all of them, so that the memory which the batch needs
    is that of decoding. **Arguments:** `cuda_graph`: replay a graph, on a GPU and where the state has its shapes from
    the start; `in_graph` says whether it does.
    """

    def __init__(
        self,
        model: LanguageModel | HuggingFaceModel,
        batch_size: int,
        prompt_length: int,
        generate: int,
        state_dtype: torch.dtype,
        temperature: float = 0,
        cuda_graph: bool = False,
    ):
        device = next(model.parameters()).device
        self.model, self.steps, self.tokens, self.temperature = model, generate, batch_size, temperature
        self.model_step = model.step
        self.room: dict[str, Any] = {"max_length": prompt_length + generate, "dtype": state_dtype}
        self.prompt = torch.randint(model.config.vocab_size, (1, prompt_length), device=device)
        self.last = torch.full((1, 1), prompt_length - 1, device=device)
        empty = model.init_state(1, **self.room)
        before = _shapes(empty)
        logits, after = model.prefill(self.prompt, empty, self.last)
        self.first = sample(logits[:, -1], temperature)  # [1]
        self.of_one_row = after if before is not None and _shapes(after) == before else None
        self.state: Any = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.restart()
        if cuda_graph and device.type == "cuda" and self.of_one_row is not None:
            self.graph = self._record(device)

    @property
    def in_graph(self) -> bool:
        return self.graph is not None

    def restart(self) -> None:
        """Back to the end of the prompt."""
        if self.graph is not None:
            self._overwrite()
            return
        self.state = None  # frees the one before
        self.token = self.first.repeat(self.tokens)  # [B]
        self.state = self._behind_the_prompt()

    def step(self) -> None:
        if self.graph is not None:
            self.graph.replay()
            return
        logits, self.state = self.model_step(self.token, self.state)
        self.token = sample(logits, self.temperature)

    def step_in_place(self) -> None:
        """A step that leaves token and state where they are."""
        logits, state = self.model_step(self.token, self.state)
        overwrite([self.token, self.state], [sample(logits, self.temperature), state])

    def _behind_the_prompt(self) -> Any:
        state = self.model.init_state(self.tokens, **self.room)
        if self.of_one_row is None:
            last = self.last.expand(self.tokens, 1)
            return self.model.prefill(self.prompt.expand(self.tokens, -1), state, last)[1]
        overwrite(state, self.of_one_row)
        return state

    def _record(self, device: torch.device) -> torch.cuda.CUDAGraph:
        if isinstance(self.model, LanguageModel):
            self.model_step = self.model.generate_step()
        return recorded(self.step_in_place, self._overwrite, device)

    def _overwrite(self) -> None:
        overwrite([self.token, self.state], [self.first, self.of_one_row])


def _shapes(state: Any) -> Any:
    """The structure of a state with the shape and dtype of each tensor; None where it holds anything else."""
    leaves, structure = tree_flatten(state)
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        return None
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]
