"""Training in bfloat16 and on a GPU: the same losses as in float32 on a CPU, to the precision at hand."""

import pytest
import torch

from models import MIXERS
from recallbench.train import Training

PAIRS = [(0.01, 0), (0.003, 1)]


def losses(training):
    """Of every member after each step of an epoch, added up; and after its last, on the validation split."""
    training.set_rates(0)
    found = []
    for segment, rows in training.order(0):
        training.train_step(segment, rows)
        found += training.epoch_loss.tolist()
    training.end_epoch(0, lambda run, log: None)
    return found + [member.log[-1]["validation_loss"] for member in training.members]


def two(mixer, precision, members, device="cpu"):
    runs = members(PAIRS, {"mixer": {"name": mixer}, "train.precision": precision})
    return Training(runs, torch.device(device))


@pytest.mark.parametrize("mixer", ["attention", "linear_attention", "mamba"])
def test_bfloat16_products_move_the_loss_by_their_rounding(mixer, members):
    exact, rounded = (losses(two(mixer, precision, members)) for precision in ("float32", "bfloat16"))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=2e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("mixer", [name for name, kind in MIXERS.items() if not kind.needs_gpu])
def test_replayed_graphs_train_as_the_cpu_does(mixer, precision, members):
    here, there = two(mixer, "float32", members), two(mixer, precision, members, "cuda")
    there.segments, there.validation = (
        [examples.to(there.device) for examples in split] for split in (here.segments, here.validation)
    )  # a GPU draws its own
    assert losses(there) == pytest.approx(losses(here), rel=1e-3 if precision == "float32" else 2e-2)
