# make demo        two bundled models in, a crosscoder and an honest diff out
# make reproduce   every experiment of the paper on the bundled pair, into runs/reproduce; under 20 minutes
# make test        the default tests: CPU, offline, a few minutes
# make test-all    the same, the slow tier, and the browser tests where there is a Chromium
# make test-lowest the quick tests at the lowest versions that pyproject.toml allows, in an environment of its own
# make bench       peers, each into its own environment, and every CPU measurement; under 15 minutes
# make docs        the documentation site, into site/
# make release-check    the wheel and the sdist hold what they should, and say one version everywhere
# make lint types wheel clean    what they say; lint and types need the dev tools, which they install
# Each of them creates .venv and installs first where that is still to do.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input --no-compile
INSTALLED := $(VENV)/.installed
INSTALLED_BROWSER := $(VENV)/.installed-browser
INSTALLED_DOCS := $(VENV)/.installed-docs
INSTALLED_DEV := $(VENV)/.installed-dev
PYTEST := $(BIN)/python -m pytest -q
# Two processes, each with one thread; the tests of one file share what is expensive to make.
SPREAD := -n 2 --dist loadfile
BENCH := .venv-bench
LOWEST := .venv-lowest
PEERS := llamascopium eai-sparsify sae-lens dictionary-learning

.DELETE_ON_ERROR:
.PHONY: demo reproduce test test-all test-lowest bench bench-peers docs lint types wheel release-check \
	clean

demo: $(INSTALLED)
	$(BIN)/crosscoders demo

reproduce: $(INSTALLED)
	$(BIN)/crosscoders reproduce --pair tiny-reasoner

test: $(INSTALLED)
	$(PYTEST) $(SPREAD)

# GPU tests skip themselves nowhere: they are asked for by name, `pytest -m gpu`, on a machine that has one.
# The browser itself is the system's: chromium, chromium-browser or google-chrome on the PATH.
test-all: test $(INSTALLED_BROWSER)
	$(PYTEST) $(SPREAD) -m "slow and not browser and not gpu"
	$(PYTEST) -m "browser and not gpu"

test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -q -o addopts=--import-mode=importlib \
	-m "not slow and not browser and not gpu" tests/core tests/data tests/training

# Run it on a machine that does nothing else. A peer that cannot be installed is reported as n/a.
bench: $(INSTALLED)
	@$(MAKE) --no-print-directory -j 4 bench-peers
	$(BIN)/python -m benchmarks.kernels

bench-peers: $(PEERS:%=$(BENCH)/%/.installed)

docs: $(INSTALLED_DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --clean --site-dir site

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED_DEV)
	$(BIN)/pyright

wheel: $(INSTALLED_DEV)
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation . > /dev/null
	$(BIN)/python .ci/check_wheel.py dist

release-check: wheel
	$(BIN)/python -m build --sdist --no-isolation . > /dev/null
	$(BIN)/python .ci/check_release.py dist

clean:
	rm -rf $(VENV) $(BENCH) $(LOWEST) build dist site .pytest_cache .ruff_cache .hypothesis
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (once, about a minute) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) -c constraints.txt -e ".[test,plot]"
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	@echo "Installing ruff, pyright and build into $(VENV) ..."
	@$(PIP_INSTALL) -c constraints.txt -e ".[dev]"
	@touch $@

$(INSTALLED_BROWSER): $(INSTALLED)
	@echo "Installing playwright and axe into $(VENV) ..."
	@$(PIP_INSTALL) -c constraints.txt -e ".[browser]"
	@touch $@

$(INSTALLED_DOCS): $(INSTALLED)
	@echo "Installing mkdocs-material and mkdocstrings into $(VENV) ..."
	@$(PIP_INSTALL) -c constraints.txt -e ".[docs]"
	@touch $@

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	@echo "Installing the lowest allowed versions into $(LOWEST) (once) ..."
	@rm -rf $(LOWEST)
	@$(PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/python -m pip install -qq --disable-pip-version-check --no-input --no-compile \
	-c constraints-lowest.txt -e . pytest hypothesis
	@touch $@

$(BENCH)/%/.installed: benchmarks/kernels/peers/%.txt
	@echo "Installing $* into $(BENCH)/$* (once) ..."
	@rm -rf $(BENCH)/$*
	@$(PYTHON) -m venv $(BENCH)/$*
	@if $(BENCH)/$*/bin/python -m pip install -qq --disable-pip-version-check --no-input --no-compile \
	--prefer-binary -r $<; then touch $@; else rm -rf $(BENCH)/$*; echo "$* cannot be installed here"; fi
	@$(BENCH)/$*/bin/python -c "import torchvision" 2> /dev/null \
	|| $(BENCH)/$*/bin/python -m pip uninstall -qq -y torchvision 2> /dev/null || true
