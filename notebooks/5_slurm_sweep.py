# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A sweep on SLURM, from submission to figure
#
# A study is a YAML file. One command checks all of its points, submits what has no record yet, and returns; another
# tells how it stands. Where there is no SLURM the same study runs in worker processes on this machine.

# %%
# %matplotlib inline
import os
import shutil
import subprocess
import sys
from pathlib import Path

import analysis
from analysis.figures import recall_by_state

RUNS = "../runs/slurm_sweep"
SLURM = shutil.which("sbatch") and subprocess.run(["sinfo"], capture_output=True, check=False).returncode == 0
LAUNCHER = "slurm" if SLURM else "local"
LAUNCHER


# %%
def python(*arguments):
    """`python -m ...`, and what it says."""
    plain = {**os.environ, "FORCE_COLOR": ""}  # Jupyter asks for colours, and gets a bar's every change
    done = subprocess.run([sys.executable, "-m", *arguments], env=plain, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


# %% [markdown]
# ## The study
#
# Lists under `params` are axes of every grid; each grid adds its own. Points that differ only in learning rate or seed
# train together.

# %%
STUDY = """\
# @package _global_
study: first_sweep
task: {vocab_size: 64, num_kv_pairs: 8, num_examples: 4096, num_test_examples: 256}
model: {d_model: 32}
train: {batch_size: 32, epochs: 2}
checkpoint_seconds: 5
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      train.learning_rate: [0.003, 0.01]
    grids:
      - mixer: attention
      - mixer: linear_attention
        mixer.feature_dim: [4, 12]
"""
Path("conf/study").mkdir(parents=True, exist_ok=True)
Path("conf/study/first_sweep.yaml").write_text(STUDY)

# %% [markdown]
# ## Submit
#
# Without `sweep.wait=true` the command returns as soon as SLURM has the array, and the terminal may be closed. The
# settings of a real cluster go here: `hydra.launcher.partition=...`, `hydra.launcher.gpus_per_task=1`,
# `sweep.runs_per_task=8` ([docs/sweeps.md](../docs/sweeps.md)).

# %%
ASK = ["recallbench", "--config-dir", "conf", "+study=first_sweep", f"runs={RUNS}", f"hydra/launcher={LAUNCHER}"]
submitted = python(*ASK, "sweep.wait=true")
print(submitted)

# %% [markdown]
# ## How it stands
#
# `python -m sweeps status first_sweep --watch` in a terminal goes on looking; `retry` runs what failed, `cancel` stops
# it.

# %%
print(python("sweeps", "status", "first_sweep", "--runs", RUNS))

# %% [markdown]
# The same command again finds every record and runs nothing:

# %%
print(python(*ASK))

# %% [markdown]
# ## The figure

# %%
runs = analysis.load(RUNS, study="first_sweep")
recall_by_state.draw(runs)

# %% [markdown]
# One file with all records, to take along:

# %%
print(python("sweeps", "export", "first_sweep", "--runs", RUNS, "--out", f"{RUNS}/first_sweep.parquet"))
