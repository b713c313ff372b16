# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Real recall: language models on text of one's own
#
# MQAR is the model organism; the claim is about language. Here two small language models are trained on a corpus, and
# asked what they recall: by perplexity at the tokens that repeat something said before, and by values asked out of
# documents. The corpus is these guides, some 40 kB, so that it takes a minute; what is said of it says nothing of
# architectures. `+study=real_recall` does the same with 30 million parameters on a corpus that deserves them.

# %%
# %matplotlib inline
import json
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import analysis
from recallbench.here import run_here

RUNS = "../runs/real_recall"

# %% [markdown]
# ## A corpus
#
# One JSON object a line, with a field `text`; plain `.txt` files will do, too, and both packed by gzip, xz or
# zstandard.

# %%
guides = sorted(Path("../docs").glob("*.md"))
sections = [part.strip() for guide in guides for part in re.split(r"\n(?=## )", guide.read_text(encoding="utf-8"))]
corpus = Path("../corpora/guides.jsonl")
corpus.parent.mkdir(exist_ok=True)
corpus.write_text("".join(json.dumps({"text": section}) + "\n" for section in sections))
len(sections)

# %% [markdown]
# ## Train
#
# The corpus is tokenised once, here by a byte-pair encoding trained on it, and kept in `data.folder`. Both models read
# the same tokens in the same order.

# %%
settings = ["task=lm", f"data.path={corpus}", "data.vocab_size=512", "data.validation_fraction=0.1"]
settings += ["data.folder=../corpora", "task.sequence_length=128", "task.validations=4", "task.frequent_bigrams=20"]
settings += ["train.tokens=200000", "train.batch_size=8", "train.precision=float32", "train.learning_rate=0.005"]
settings += ["model.d_model=64", f"runs={RUNS}"]
records = [run_here(f"mixer={mixer}", *settings) for mixer in ("attention", "based")]

# %% [markdown]
# ## Perplexity by associative recall
#
# A *hit* is a token that completes a bigram which occurred earlier in the same sequence, and which is not among the
# frequent ones of the corpus: what recall can know and a language model by heart does not (Arora et al. 2023,
# [arXiv 2312.04927](https://arxiv.org/abs/2312.04927)).

# %%
columns = ["perplexity", "ar_perplexity", "other_perplexity", "ar_share"]
pd.DataFrame({record["family"]: record["metrics"] for record in records}).T[columns]

# %% [markdown]
# By how far back the bigram was:

# %%
figure, axes = plt.subplots(figsize=(4, 2.5))
for record in records:
    hits = pd.DataFrame(record["slices"])
    axes.plot(hits["distance"], hits["perplexity"], marker="o", label=record["family"])
axes.set(xscale="log", yscale="log", xlabel="tokens since it was said", ylabel="perplexity of hits")
axes.legend()
plt.show()

# %% [markdown]
# ## Values out of documents
#
# The builder makes questions of what is a key and a value already: front matter, and tables of two columns.

# %%
documents = Path("../corpora/documents.jsonl")
build = [sys.executable, "-m", "recallbench.recall.build_documents", str(corpus), "--out", str(documents)]
if not documents.exists():  # the builder overwrites nothing
    subprocess.run(build, check=True, capture_output=True)
[(d["key"], d["value"]) for d in map(json.loads, documents.read_text().splitlines()[:5])]

# %% [markdown]
# Each document is read once, in parallel form, and the answer generated in recurrent form. `task.read_twice=true` has
# it read twice, which a model of fixed state can make use of (Arora et al. 2024,
# [arXiv 2407.05483](https://arxiv.org/abs/2407.05483)).

# %%
asked = [
    run_here(
        "task=extraction",
        f"task.path={documents}",
        "task.context=512",
        "task.generate=16",
        "model=trained",
        f"model.run={record['identity']}",
        f"runs={RUNS}",
    )
    for record in records
]
pd.DataFrame({record["family"]: record["metrics"] for record in asked}).T

# %% [markdown]
# The same works with a model of the hub, `model=huggingface model.name=...`, and with the releases of the Based
# authors, `model=checkpoint model.checkpoint=hazyresearch/based-360m`; and for the paper's own tasks, `task=swde`,
# `fda` and `squad_completion`.

# %%
analysis.load(RUNS)[["family", "task.name", "status", "state.bytes", "cost.seconds"]]
