"""`make real-recall`: from text of one's own to trained models, questions about documents and both figures."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import analysis

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "train.tokens=4096 train.batch_size=4 train.micro_batch_size=2 task.sequence_length=64 task.test_sequences=4 "
    "task.validation_sequences=4 task.validations=1 data.tokenizer=bytes data.validation_fraction=0.2 model.d_model=8 "
    "device=cpu hydra.sweeper.grids=[{model:two_layer,mixer:[attention,based]}]"
)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_from_a_corpus_to_figures(tmp_path):
    page = "---\ntitle: Page {n}\nowner: team {n}\n---\n\n# Page {n}\n\n" + "The text of page {n} goes on. " * 30
    pages = [json.dumps({"text": page.format(n=n)}) for n in range(40)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(pages[:36]))
    (tmp_path / "valid.jsonl").write_text("\n".join(pages[36:]))
    answer = {"text": "red", "answer_start": 39}
    told = {
        "context": "Of all the things here, the big one is red.",
        "qas": [{"question": "Which?", "answers": [answer]}],
    }
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"paragraphs": [told]}]}))
    figures, runs = tmp_path / "figures", tmp_path / "runs"
    command = ["make", "--assume-old=.venv/ready", "real-recall", f"BIN={Path(sys.executable).parent}"]
    command += [f"CORPUS={tmp_path}/corpus.jsonl", f"DOCUMENTS={tmp_path}/valid.jsonl", f"SQUAD={tmp_path}/squad.json"]
    command += [f"RUNS={runs}", f"FIGURES={figures}", f"SETTINGS={SETTINGS} data.folder={tmp_path}/corpora"]
    command += ["QUESTIONS=task.context=128 task.limit=4 task.dtype=float32 device=cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = analysis.load(runs, study="real_recall")
    assert dict(found["task.name"].value_counts()) == {"lm": 4, "extraction": 2, "squad_completion": 2}
    asked = found.loc[found["task.name"] != "lm"]
    trained = found.loc[found["task.name"] == "lm"]
    best = trained.sort_values("validation_loss").groupby("family")["identity"].first()
    assert set(asked["model.run"]) == set(best)
    for figure, points in (("perplexity_by_state", 2), ("real_recall_by_state", 4)):
        assert (figures / "real_recall" / f"{figure}.png").stat().st_size > 0
        assert len(pd.read_csv(figures / "real_recall" / f"{figure}.csv")) == points


def test_what_it_needs_is_said():
    done = subprocess.run(
        ["make", "--assume-old=.venv/ready", "real-recall"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "make real-recall CORPUS='corpus/*.jsonl.xz' DOCUMENTS=valid.jsonl.xz" in done.stdout
