# Everything installs into .venv, once; a later call finds it there.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test nbval pythons check lab bench soak notebooks package clean

demo: .venv/.demo  ## the quickstart in the terminal: no key, no network
	$(BIN)/python -m llm_magic.demo notebooks/01_quickstart.ipynb

# Tests wait about as much as they compute. A file stays in one process, and so does a front end.
APART := -n 4 --no-loadscope-reorder

# Set in some images: then each of the many processes would compile every module anew.
test nbval: export PYTHONDONTWRITEBYTECODE :=

test: .venv/.dev  ## everything but the style checks
	$(BIN)/python -m pytest -p no:nbval $(APART) $(COVER)

nbval: .venv/.dev  ## the notebooks alone: asked, then replayed
	$(BIN)/python -m pytest --nbval notebooks
	LLM_MAGIC_MODE=replay $(BIN)/python -m pytest --nbval notebooks

pythons: .venv/.dev  ## the notebooks, and what differs between them, in Python 3.11, 3.12 and 3.13
	.ci/pythons

check: .venv/.dev  ## format, lint, types, layers, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell llm_magic tests benchmarks notebooks .ci *.md Makefile pyproject.toml

soak: .venv/.dev  ## random faults against real kernels for 20 minutes, then fuzzing with new seeds
	$(BIN)/python -m tests.hostile.soak --minutes 20
	LLM_MAGIC_FUZZ=soak $(BIN)/python -m pytest $(APART) -q tests/hostile -k fuzz

lab: .venv/.lab  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

bench: .venv/.dev .venv/peers  ## one table of ratios beside other libraries; writes benchmarks/RESULTS.md
	$(BIN)/python benchmarks/run.py

.venv/peers: benchmarks/peers.txt | .venv/.dev
	$(PYTHON) -m venv --clear $@ || ( $(PYTHON) -m venv --clear --without-pip $@ && $(PYTHON) -m pip --python $@/bin/python install pip )
	$@/bin/python -m pip install --quiet --disable-pip-version-check -r $< || ( rm -rf $@; exit 1 )
	touch $@

# Against the demo model, whatever the developer has set or asked before. The path of the guard is
# a whole one, since a kernel runs in the folder of its notebook.
OFFLINE := OPENAI_API_KEY= OPENAI_BASE_URL= LLM_MAGIC_API_KEY= LLM_MAGIC_BASE_URL= \
	PYTHONPATH=$(CURDIR)/tests/guard LLM_MAGIC_CACHE_DIR=$(CURDIR)/.venv/asked/cache \
	LLM_MAGIC_LEDGER_DIR=$(CURDIR)/.venv/asked/ledger

# Asked once, so that the cassettes are complete; saved as they replay, which is always the same.
notebooks: .venv/.dev  ## run the notebooks anew and save their outputs
	rm -rf .venv/asked
	$(OFFLINE) $(BIN)/jupyter execute notebooks/*.ipynb
	$(OFFLINE) LLM_MAGIC_MODE=replay $(BIN)/jupyter nbconvert --to notebook --execute --inplace \
	--coalesce-streams --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

package: .venv/.dev  ## wheel and sdist into empty environments from the package index, and tried there
	$(BIN)/python -m tests.install

clean:
	rm -rf .venv

# Debian's Python comes without ensurepip; then pip itself is asked to fill the environment.
.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llm_magic needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv || ( $(PYTHON) -m venv --clear --without-pip .venv && $(PYTHON) -m pip --python .venv/bin/python install pip )

.venv/.%: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	touch $@
