# The book in two commands: `make book` builds it, `make test` tests it. `make help` lists the rest.
# Every target creates the virtual environment in .venv and installs what is missing itself, at the pinned versions;
# a second run installs nothing.

PROFILE ?= quick
FORCE ?=
OF_NOTEBOOKS ?= numbers or budget
PORT ?= 8000
EXTRAS = book,minilm,hub,sweep,test

# The first Python that fits, unless PYTHON names one.
FITS = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null && $$p -c '$(FITS)' 2>/dev/null && { echo $$p; break; }; done)

BIN = .venv/bin
PINNED := $(shell cat pyproject.toml constraints.txt | cksum | tr -c '0-9\n' '-')
STAMP = .venv/.installed-$(PINNED)
BROWSER_STAMP = .venv/.browser-$(PINNED)
SITE = $(if $(filter quick,$(PROFILE)),_build/html,_build/$(PROFILE)/html)
NOTEBOOK_ENV = -u MPLBACKEND -u COLUMNS OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PYTHONHASHSEED=0 \
	HF_HUB_OFFLINE=1 TQDM_DISABLE=1 QKREPRO_NUMBERS=$(CURDIR)/_build/reexecuted
ONE_THREAD = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help install book html serve repeat archive test test-all lint notebooks processors unit slow pins clean distclean
.DEFAULT_GOAL := help

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'
	@echo "  Options: PROFILE=smoke|quick|paper (make book), FORCE=1 (execute all), PORT=8000 (make serve), PYTHON=/path/to/python3"

install: $(STAMP) ## Create .venv and install the pinned versions

$(STAMP):
	@if [ -z "$(PYTHON)" ]; then \
		echo "make: no Python 3.11, 3.12 or 3.13 was found. On Debian 12: apt install make git python3-venv"; \
		echo "make: or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; fi
	@$(PYTHON) -c '$(FITS)' || { \
		echo "make: PYTHON=$(PYTHON) is $$($(PYTHON) --version 2>&1); it must be Python 3.11, 3.12 or 3.13"; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "make: $(PYTHON) has no venv module. On Debian 12: apt install make git python3-venv"; exit 1; }
	@[ -x $(BIN)/python ] && $(BIN)/python -c '$(FITS)' 2>/dev/null || { \
		echo "install: creating .venv with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear .venv; }
	@echo "install: the pinned versions, once (about 3 minutes; PyTorch is the largest of them)"
	$(BIN)/python -m pip install --disable-pip-version-check --no-input -c constraints.txt -e ".[$(EXTRAS)]"
	@rm -f .venv/.installed-*
	@touch $@

$(BROWSER_STAMP): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --no-input -c constraints.txt -e ".[browser]"
	@rm -f .venv/.browser-*
	@touch $@

book: $(STAMP) ## Execute the notebooks whose inputs changed, build the site
	@$(BIN)/qkrepro figures --profile $(PROFILE) $(if $(FORCE),--force)
	@$(MAKE) --no-print-directory html PROFILE=$(PROFILE)

html: $(STAMP) ## Build the site from the outputs at hand
	@$(BIN)/qkrepro html --profile $(PROFILE)
	@echo "serve it with: make serve$(if $(filter quick,$(PROFILE)),, PROFILE=$(PROFILE))"

serve: $(STAMP) ## Serve the built site on this machine
	@[ -f $(SITE)/index.html ] || { echo "make: $(SITE) is not built yet; run: make book PROFILE=$(PROFILE)"; exit 1; }
	@echo "http://localhost:$(PORT)/ (stop with Ctrl-C)"
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory $(SITE) $(PORT)

repeat: $(STAMP) ## Execute every notebook once more, apart, and compare the bytes
	@$(BIN)/qkrepro figures --repeat

archive: $(STAMP) ## Put all records, with their digests, into one archive
	@$(BIN)/qkrepro archive

test: lint notebooks unit ## Everything quick: ruff, mypy, nbval, pytest

test-all: test processors slow ## The slow tests too: other instructions, strict builds, browser

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

notebooks: $(STAMP)
	@rm -rf _build/reexecuted && mkdir -p _build/reexecuted
	env $(NOTEBOOK_ENV) $(BIN)/pytest -n 2 --dist loadfile -p agreeing_outputs --nbval --nbval-current-env notebooks
	env $(NOTEBOOK_ENV) $(BIN)/pytest -q tests/reexecuted_notebooks.py -k "$(OF_NOTEBOOKS)"

processors: $(STAMP) ## All notebooks again with the instructions of other processors
	ATEN_CPU_CAPABILITY=avx2 $(MAKE) --no-print-directory notebooks OF_NOTEBOOKS=numbers
	ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE $(MAKE) --no-print-directory notebooks OF_NOTEBOOKS=numbers

unit: $(STAMP)
	env $(ONE_THREAD) $(BIN)/pytest -n 2 -m "not slow"

slow: $(STAMP) $(BROWSER_STAMP)
	env $(ONE_THREAD) $(BIN)/pytest -n 2 --dist loadgroup -m slow

pins: $(STAMP) ## Resolve the pinned versions anew
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv
	@sed -n '/^#/p' constraints.txt > constraints.txt.new
	@echo "torch==2.13.0" | $(BIN)/uv pip compile -q --universal --python-version 3.11 --all-extras \
		--no-annotate --no-header pyproject.toml - >> constraints.txt.new
	@mv constraints.txt.new constraints.txt
	@git --no-pager diff --stat -- constraints.txt

clean: ## Remove what was built; the environment stays
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

distclean: clean ## Remove the environment too
	rm -rf .venv qkrepro.egg-info
