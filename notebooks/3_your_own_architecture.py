# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Your own architecture
#
# A mixer is one class with a parallel and a recurrent form. Here it is written in a notebook, to try the idea out; as a
# file in `models/mixers/`, with a line of YAML in `conf/mixer/`, it takes part in every sweep, and the tests hold it to
# the same contract.

# %%
# %matplotlib inline
import torch
from pydantic import PositiveInt
from torch import nn
from torch.utils._pytree import tree_leaves

import analysis
from analysis.figures import recall_by_state
from kernels.storage import stored
from models import Mixer
from models.mixers import ALL_MIXERS
from recallbench.here import run_here

RUNS = "../runs/own_architecture"

# %% [markdown]
# ## The idea
#
# Linear attention whose state forgets: S_t = a S_{t-1} + k_t v_t^T and y_t = S_t^T q_t, with one learned decay a for
# each head. The keyword arguments of the constructor, as annotated, are its settings.


# %%
class Fading(Mixer):
    """Linear attention with a decay a head."""

    def __init__(self, d_model: PositiveInt, feature_dim: PositiveInt = 8, num_heads: PositiveInt = 2):
        super().__init__()
        self.d_model, self.K, self.H = d_model, feature_dim, num_heads
        self.V = d_model // num_heads
        self.qk_proj = nn.Linear(d_model, 2 * num_heads * feature_dim, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)
        self.decay = nn.Parameter(torch.linspace(2, 5, num_heads))

    def _heads(self, x):  # [B, N, D] -> [B, H, N, K] twice, [B, H, N, V]
        q, k = self.qk_proj(x).unflatten(-1, (2, self.H, self.K)).relu().transpose(1, 3).unbind(2)
        return q, k, self.v_proj(x).unflatten(-1, (self.H, self.V)).transpose(1, 2)

    def init_state(self, batch_size, *, max_length=None, dtype=None, device=None):
        return torch.zeros(batch_size, self.H, self.K, self.V, **self.like_parameters(dtype, device))

    def prefill(self, x, state):
        q, k, v = self._heads(x)
        N = x.shape[1]
        log_a = nn.functional.logsigmoid(self.decay)[:, None, None]  # [H, 1, 1]
        t = torch.arange(N, device=x.device)
        ago = t[:, None] - t
        decay = torch.where(ago >= 0, (log_a * ago.clamp_min(0)).exp(), 0)  # [H, N, N]
        since = (log_a * (t[:, None] + 1)).exp()  # [H, N, 1], what is left of the state
        y = (q @ k.mT * decay) @ v + since * (q @ state.to(x.dtype))
        left = (log_a * (N - 1 - t[:, None])).exp()
        S = (k * left).mT @ v + (log_a * N).exp() * state.to(x.dtype)
        return self.o_proj(y.transpose(1, 2).flatten(2)), stored(S, state.dtype)

    def step(self, x, state):
        q, k, v = (t.squeeze(2) for t in self._heads(x[:, None]))
        S = self.decay.sigmoid()[:, None, None] * state.to(x.dtype) + k[..., None] * v[..., None, :]
        return self.o_proj((q[..., None, :] @ S).flatten(1)), stored(S, state.dtype)

    def state_bytes(self, length, dtype):
        return self.H * self.K * self.V * dtype.itemsize


# %% [markdown]
# ## The contract
#
# Any split of a sequence into a prefill and steps gives what the parallel form gives, and the bytes that it states are
# the bytes that it holds. `make test` checks this, and more, for every file in `models/mixers/`.

# %%
torch.manual_seed(0)
mixer = Fading(d_model=16).double()
x = torch.randn(3, 20, 16, dtype=torch.float64)
y, state = mixer.prefill(x[:, :11], mixer.init_state(3))
steps = []
for t in range(11, 20):
    out, state = mixer.step(x[:, t], state)
    steps.append(out)
assert torch.allclose(mixer(x), torch.cat([y, torch.stack(steps, 1)], 1), atol=1e-12)
assert sum(leaf.nbytes for leaf in tree_leaves(state)) == 3 * mixer.state_bytes(20, torch.float64)

# %% [markdown]
# ## Train it beside others
#
# In this process its name is known as soon as it is registered. The model is the usual one, a short convolution and
# then the mixer under study.

# %%
ALL_MIXERS["fading"] = Fading
settings = ["task.vocab_size=64", "task.num_kv_pairs=8", "task.num_examples=4096", "task.num_test_examples=256"]
settings += ["model.d_model=32", "train.batch_size=32", "train.epochs=4", "train.learning_rate=0.005", f"runs={RUNS}"]

own = [
    run_here("model.family=fading", f"model.layers=[short_conv,{{name:fading,feature_dim:{K}}}]", *settings)
    for K in (4, 16)
]
others = [run_here("mixer=linear_attention", f"mixer.feature_dim={K}", *settings) for K in (4, 8)]

# %%
runs = analysis.load(RUNS)
recall_by_state.draw(runs)

# %% [markdown]
# ## Keep it
#
# `models/mixers/fading.py` with this class and `conf/mixer/fading.yaml` with the line `name: fading`: after that
# `python -m recallbench -m mixer=fading,based mixer.feature_dim=4,8,16` sweeps it, `make test` holds it to the
# contract, and `python -m recallbench.throughput mixer=fading` measures its speed.
