# Lookalike: `make run` shows it, `make test` proves it. Both set up all they need.
PYTHON ?= python3
VENV   := .venv
STUDIO := .venv-label-studio
BIN    := $(VENV)/bin
PIP    := -m pip --disable-pip-version-check
PORTS  ?= 8080,9090
CLIPS  ?=
ARGS   ?=
# tests wait for servers more than they compute; the longest files, those with a Label Studio, go first
SPREAD ?= --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: run test check bench soak clean

run: $(VENV)/.installed $(STUDIO)/.installed
	@$(BIN)/lookalike up --demo --ports $(PORTS) $(if $(CLIPS),--clips "$(CLIPS)") $(ARGS)

test: $(VENV)/.installed-dev $(STUDIO)/.installed check
	$(BIN)/python -m pytest $(SPREAD) $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev
	$(BIN)/lookalike bench $(if $(CLIPS),--clips "$(CLIPS)") $(ARGS)

# faults, load, other versions of RQ and its server: about an hour; make soak ARGS="--tasks 50 --rounds 3 --only chaos"
soak: $(VENV)/.installed-dev
	$(BIN)/python -m tests.soak $(ARGS)

# torch first, and by itself: a plain `torch` in a dependency may bring gigabytes of CUDA where it is not wanted
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "lookalike: Python 3.11 or later is needed, $$($(PYTHON) --version) is here; try: make run PYTHON=python3.12"; exit 1; }
	@echo "installing Lookalike into $(VENV) …"
	@$(PYTHON) -m venv $(VENV) || { echo "lookalike: the venv module is missing; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python $(PIP) install --quiet --constraint constraints.txt torch
	@$(BIN)/python $(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(BIN)/python $(PIP) install --quiet --constraint constraints.txt --editable '.[dev,postgresql]'
	@touch $@

# Label Studio pins an old redis, rq and numpy: it lives in an environment of its own
$(STUDIO)/.installed:
	@echo "installing Label Studio into $(STUDIO) …"
	@$(PYTHON) -m venv $(STUDIO)
	@$(STUDIO)/bin/python $(PIP) install --quiet label-studio==1.23.2
	@touch $@

clean:
	rm -rf $(VENV) $(STUDIO) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
