# Every target sets up what it needs in .venv (pinned by constraints.txt) and is quick when that is already there.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# vLLM needs an environment of its own.
VLLM_READY := .venv-vllm/.ready
# Two at a time, as on a machine of two cores: many tests start two processes of their own.
WORKERS ?= --numprocesses 2 --dist worksteal
# The demo's evaluations, whatever it is trained on.
TURNS := --evaluation.tree_depth 3
BENCHMARKS := decode rollout update precision grpo_vs_trl memory scaling weak_scaling overhead report endpoint

# A skipped test is easily overlooked at the end of a thousand.
TELL_BROWSER := { command -v chromium || command -v chromium-browser || command -v google-chrome; } > /dev/null || \
	echo "No Chromium was found, so the report was not tried in a browser (Debian's package is called chromium)."

# MkDocs' theme tells of its successor at every build.
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test test-all checks docs learn bench setup clean

demo: $(READY)  ## Train a LoRA tester on the embedded real model, and report how it did (ARGS="--training.seed 7")
	$(BIN)/python examples/train.py --config examples/configs/smollm2_mle.yaml --training.output_dir runs/demo \
		--training.overwrite_output_dir true --evaluation.around_training false $(ARGS)
	$(BIN)/astra-accel evaluate runs/demo --untrained $(TURNS)
	$(BIN)/astra-accel evaluate runs/demo $(TURNS)
	$(BIN)/astra-accel report runs/demo runs/demo/evaluation_untrained

test: $(READY)  ## The tests of every change
	$(BIN)/python -m pytest $(WORKERS) -m "not slow"
	@$(TELL_BROWSER)

test-all: $(READY) $(VLLM_READY)  ## All tests, the long ones too
	$(BIN)/python -m pytest $(WORKERS)
	@$(TELL_BROWSER)

checks: $(READY)  ## Lint, format, types, and that the documents build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	site=$$(mktemp -d); $(BIN)/mkdocs build --strict --quiet --site-dir $$site; code=$$?; rm -r $$site; exit $$code

docs: $(READY)  ## The documents as pages to read in a browser: site/index.html
	$(BIN)/mkdocs build --strict --quiet

learn: $(READY)  ## What each recipe learns over 3 seeds (PROMPTS=FILE for other prompts, ARGS="--recipes mle --jobs 2")
	$(BIN)/python benchmarks/learn.py $(if $(PROMPTS),--prompts $(PROMPTS)) $(ARGS)

bench: $(READY)  ## Every benchmark
	for benchmark in $(BENCHMARKS); do $(BIN)/python benchmarks/$$benchmark.py || exit 1; done

setup: $(READY)  ## The environment alone

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

$(VLLM_READY): tests/vllm_requirements.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	touch $(VLLM_READY)

clean:  ## Remove the environment and caches (runs stay)
	rm -rf .venv .venv-vllm .mypy_cache .ruff_cache .pytest_cache
