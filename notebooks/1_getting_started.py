# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Getting started: two models and a frontier
#
# How much of what a model has read can it recall, and what does it keep for that? Here attention, which keeps
# everything, meets Based, which keeps a fixed state, on a small task of multi-query associative recall (MQAR). It takes
# a minute or two on a laptop.
#
# Every training is a *run*, with a directory of its own and a record in it. A cell that is executed again finds the
# record and trains nothing.

# %%
# %matplotlib inline
import torch

import analysis
from analysis.figures import recall_by_state
from models import MIXERS
from models.settings import construct
from recallbench.here import run_here
from recallbench.tasks import TASKS

RUNS = "../runs/getting_started"

# %% [markdown]
# ## The task
#
# A sequence opens with pairs of a key and a value; each key comes once more, and the model is to say its value. With 8
# pairs in 64 tokens:

# %%
TASK = {"vocab_size": 64, "sequence_length": 64, "num_kv_pairs": 8, "num_examples": 4096, "num_test_examples": 256}
(example,) = construct(TASKS["mqar"], TASK).examples("test", "cpu")
asked = dict(zip(example.positions[0].tolist(), example.targets[0].tolist(), strict=True))
" ".join(f"{token}?{asked[i]}" if i in asked else f"{token}" for i, token in enumerate(example.tokens[0].tolist()))

# %% [markdown]
# ## Train
#
# `run_here` takes what the command line takes. In a terminal the same run is `python -m recallbench mixer=attention
# model.d_model=32 ...`, and a sweep of several values is `-m mixer=attention,based`.

# %%
settings = [f"task.{name}={value}" for name, value in TASK.items()]
settings += ["model.d_model=32", "train.batch_size=32", "train.epochs=4", "train.learning_rate=0.005", f"runs={RUNS}"]

attention = run_here("mixer=attention", *settings)
based = run_here("mixer=based", "mixer.feature_dim=8", "mixer.window_size=8", *settings)

# %% [markdown]
# A record says what was run, how it ended, what came out and what it cost. The state is measured: the bytes of the
# tensors that the model really holds after so many tokens.

# %%
{record["family"]: (record["metrics"]["accuracy"], record["state"]["bytes"]) for record in (attention, based)}

# %% [markdown]
# ## The frontier
#
# `analysis` reads the records as a DataFrame, one row a run. A point is one architecture at the learning rate that did
# best on validation, reported on the test split; it is on the frontier if nothing with as little state recalls as well.

# %%
runs = analysis.load(RUNS)
points = analysis.points(runs)
points.assign(frontier=analysis.frontier(points))[["family", "state.bytes", "accuracy", "frontier"]]

# %%
recall_by_state.draw(runs)

# %% [markdown]
# ## Longer than trained on
#
# The state of attention grows with the sequence and Based's does not. What `state.bytes` says holds for the length
# that it was measured at:

# %%
layers = {
    "attention": MIXERS["attention"](d_model=32),
    "based": MIXERS["based"](d_model=32, feature_dim=8, window_size=8),
}
{name: [layer.state_bytes(n, torch.float32) for n in (64, 1024, 16384)] for name, layer in layers.items()}

# %% [markdown]
# ## From here
#
# - `make figures` trains the default study, 34 runs, and draws it.
# - `2_based_figures` reads the published runs of the Based paper's grid.
# - `3_your_own_architecture` adds a mixer; `5_slurm_sweep` runs a study on a cluster.
