# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The figures of the Based paper, from published records
#
# `results/based_figure2.parquet` holds the runs of the grid of Figure 2 (Arora et al. 2024,
# [arXiv 2402.18668](https://arxiv.org/abs/2402.18668)): two layers, four learning rates, MQAR with up to 256
# key-value pairs in 1,024 tokens. Nothing is trained here, and torch is not needed.

# %%
# %matplotlib inline
import analysis
from analysis.figures import accuracy_by_kv_pairs, recall_by_state

runs = analysis.load("../results/based_figure2.parquet")
runs[["family", "model.d_model", "train.learning_rate", "status", "accuracy", "state.bytes"]].head()

# %% [markdown]
# What has been published, and on what:

# %%
runs.groupby(["family", "status", "provenance.device"]).size()

# %% [markdown]
# ## Figure 2: recall against state
#
# A point is an architecture at the learning rate that validation chose. The state is counted at 1,024 tokens, the
# longest of the test.

# %%
recall_by_state.draw(runs)

# %% [markdown]
# ## Where it breaks down
#
# The same points by the number of pairs that a sequence holds. A state of fixed size recalls them all up to some
# number, and after that less and less.

# %%
accuracy_by_kv_pairs.draw(runs)

# %% [markdown]
# ## As numbers

# %%
points = analysis.points(runs)
points = points.assign(frontier=analysis.frontier(points), KiB=points["state.bytes"] / 1024)
points[["family", "label", "KiB", "accuracy", "train.learning_rate", "frontier"]].sort_values("KiB")

# %%
slices = analysis.by_slice(analysis.at_best_learning_rate(runs))
slices.pivot_table(index=["family", "label"], columns="num_kv_pairs", values="accuracy").round(3)
