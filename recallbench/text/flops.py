"""Model FLOPs of training, for the share of what the device's matrix products reach (MFU)."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from models import ModelConfig, build_model
from models.huggingface import HuggingFaceConfig, HuggingFaceModel
from models.mixers import ALL_MIXERS
from recallbench.throughput.machine import rates
from recallbench.train import Precise


def training_flops(config: ModelConfig | HuggingFaceConfig, length: int) -> float | None:
    """Operations a token of a forward and a backward pass over sequences of so many tokens; None where not countable.

    Those of matrix products and attention in the plain PyTorch form, as torch's counter counts them on tensors without
    values: masked scores count, elementwise scans and Fourier transforms do not, nothing counts twice that is computed
    again. A backward pass has two products for each of the forward pass.
    """
    if isinstance(config, ModelConfig) and any(ALL_MIXERS[name].needs_gpu for name in config.mixer_names):
        return None
    with torch.device("meta"), torch.no_grad():
        model = build_model(config)
        tokens = torch.zeros(1, length, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            model(tokens) if isinstance(model, HuggingFaceModel) else model.prefill(tokens, model.init_state(1))
    return 3 * counter.get_total_flops() / length


def matmul_rate(train: Precise, device: torch.device) -> float:
    """Operations a second that a large product reaches on this device, in the precision of training: measured."""
    return rates(device, getattr(torch, train.precision)).flops_per_second
