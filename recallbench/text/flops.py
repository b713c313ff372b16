"""Model FLOPs of training, for the share of what the device's matrix products reach (MFU)."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from models import LanguageModel
from models.huggingface import HuggingFaceModel
from models.mixers import ALL_MIXERS
from recallbench.throughput.machine import rates
from recallbench.train import Precise


def training_flops(model: LanguageModel | HuggingFaceModel, length: int) -> float | None:
    """Operations a token of a forward and a backward pass over sequences of so many tokens; None where not countable.

    Those of matrix products and attention in the plain PyTorch form, as torch's counter counts them: masked scores
    count, elementwise scans and Fourier transforms do not, and nothing counts twice that is computed again. A backward
    pass has two products for each of the forward pass.
    """
    counter = FlopCounterMode(display=False)
    if isinstance(model, HuggingFaceModel):  # which looks at values
        with torch.no_grad(), counter:
            model(torch.zeros(1, length, dtype=torch.int64, device=next(model.parameters()).device))
    elif any(ALL_MIXERS[name].needs_gpu for name in model.mixer_names):
        return None
    else:
        with torch.device("meta"), torch.no_grad():
            plain = LanguageModel(model.config)
            tokens = torch.zeros(1, length, dtype=torch.int64)
            with counter:
                plain.prefill(tokens, plain.init_state(1))
    return 3 * counter.get_total_flops() / length


def matmul_rate(train: Precise, device: torch.device) -> float:
    """Operations a second that a large product reaches on this device, in the precision of training: measured."""
    return rates(device, getattr(torch, train.precision)).flops_per_second
