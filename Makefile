STUDY ?= quick
RUNS ?= runs
FIGURES ?= figures
PYTHON ?= python3
BIN := .venv/bin
MODULES := $(shell find kernels models recallbench sweeps analysis -name '*.py' ! -name __main__.py | \
	sed -e 's|\.py$$||' -e 's|/__init__$$||' -e 's|/|.|g' | sort)

.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

PUBLISHED := $(wildcard results/$(STUDY).parquet)
ENTRY := recallbench$(if $(shell grep -s '^throughput:\|throughput\.kind' conf/study/$(STUDY).yaml),.throughput)

figures: $(if $(PUBLISHED),.venv/analysis,.venv/ready) ## draw STUDY (default: quick), from results/ if it is published, else after running what is missing
	$(if $(PUBLISHED),,$(BIN)/python -m $(ENTRY) +study=$(STUDY) runs=$(RUNS))
	$(BIN)/python -m analysis figures $(PUBLISHED) $(RUNS) --study $(STUDY) --out $(FIGURES)/$(STUDY)

report: .venv/analysis ## what RUNS hold of STUDY as one HTML file, to explore without network: figures/STUDY/report.html
	$(BIN)/python -m analysis report $(PUBLISHED) $(RUNS) --study $(STUDY) --out $(FIGURES)/$(STUDY)/report.html

status: .venv/ready ## how far STUDY is: what is done, runs, waits, failed
	$(BIN)/python -m sweeps status $(STUDY) --runs $(RUNS)

ASK = $(BIN)/python -m recallbench +study=real_recall_documents runs=$(RUNS) $(QUESTIONS) \
	model.run=$$($(BIN)/python -m sweeps best real_recall --runs $(RUNS))

SENTENCES := $(if $(SQUAD),$(FIGURES)/real_recall/squad)

real-recall: .venv/ready $(SENTENCES) ## train on CORPUS, ask of DOCUMENTS (Markdown, JSON lines, SQuAD), complete sentences of SQUAD, draw
	@test -n "$(CORPUS)" -a -n "$(DOCUMENTS)" || { echo "make real-recall CORPUS='corpus/*.jsonl.xz' DOCUMENTS=valid.jsonl.xz"; exit 2; }
	$(BIN)/python -m recallbench +study=real_recall data.path='$(CORPUS)' runs=$(RUNS) $(SETTINGS)
	mkdir -p $(FIGURES)/real_recall
	$(BIN)/python -m recallbench.recall.build_documents '$(DOCUMENTS)' --out $(FIGURES)/real_recall/documents.jsonl
	$(ASK) task.path=$(FIGURES)/real_recall/documents.jsonl
	$(if $(SQUAD),$(ASK) task=squad_completion task.data_dir=$(SENTENCES))
	$(BIN)/python -m analysis figures $(RUNS) --study real_recall --out $(FIGURES)/real_recall

$(SENTENCES): $(wildcard $(SQUAD)) | .venv/ready
	rm -rf $@
	mkdir -p $(@D)
	$(BIN)/python -m recallbench.recall.build_completions '$(SQUAD)' --out $@

SPEEDS = $(if $(shell nvidia-smi -L 2>/dev/null),,quick_)throughput

bench: .venv/ready ## measure training, kernels and how fast models read and decode on this machine: figures/bench/*.parquet
	$(BIN)/python -m recallbench.benchmark --out $(FIGURES)/bench/training.parquet
	$(BIN)/python -m recallbench.kernel_benchmark --out $(FIGURES)/bench/kernels.parquet
	$(BIN)/python -m recallbench.throughput +study=$(SPEEDS) runs=$(RUNS)
	$(BIN)/python -m sweeps export $(SPEEDS) --runs $(RUNS) --out $(FIGURES)/bench/throughput.parquet

docs: .venv/ready ## the reference of all modules, from their docstrings: figures/docs/index.html
	@$(BIN)/python -W "ignore:The module specification" -m pdoc --docformat google --output-directory $(FIGURES)/docs $(MODULES)

notebooks: .venv/ready ## notebooks/*.py as *.ipynb, to open in Jupyter
	$(BIN)/jupytext --to ipynb notebooks/*.py

slurm-up: ## SLURM on this machine alone, to try arrays on (as root; installs it from Debian where it is missing)
	tests/slurm/one_node.sh up

slurm-down: ## stop it, nothing left
	tests/slurm/one_node.sh down

test: .venv/ready lint ## lint, types and the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: .venv/ready ## style (ruff) and types (basedpyright)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

setup: .venv/ready ## make .venv with the pinned dependencies

# What analysis/ imports: published studies are drawn without torch and all that comes with it.
.venv/analysis: requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "recallbench needs Python 3.11 or newer; give one as PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint requirements.lock \
		matplotlib moocore pandas plotly pyarrow rich
	touch $@

.venv/ready: .venv/analysis requirements.lock pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	touch $@

lock: ## write requirements.lock anew from pyproject's ranges
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet torch==2.13.0 triton==3.7.1 --editable '.[dev,wandb,fla,hf,recall,report,notebooks]'
	(sed -n '/^#/p' requirements.lock; .venv-lock/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' | grep -v -e '^nvidia-' -e '^cuda-') > requirements.tmp
	mv requirements.tmp requirements.lock && rm -rf .venv-lock

clean: ## remove the environment, caches and figures; run records stay
	rm -rf .venv figures .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help figures report bench docs status notebooks slurm-up slurm-down test lint setup lock clean
