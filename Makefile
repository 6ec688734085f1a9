# make book   sets everything up and builds the book: _build/html/index.html
# make pdf    the same book on paper: _build/book.pdf (needs Chromium or Chrome)
# make test   sets everything up and runs the tests
# make links  asks the network whether the book's links to elsewhere still lead somewhere
# make bench  sets everything up and measures sweep and training against what one would write without tnlib
# TORCH=cpu   takes PyTorch's small CPU build on Linux; PYTHON=python3.12 chooses an interpreter

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell command -v $(p))))
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet -c constraints.txt
ifeq ($(TORCH),cpu)
INSTALL += --extra-index-url https://download.pytorch.org/whl/cpu
endif

.PHONY: book pdf test links bench clean
.DELETE_ON_ERROR:

book: $(VENV)/.installed
	@$(BIN)/tnlib build

pdf: book
	@$(BIN)/tnlib pdf

links: book
	@$(BIN)/jupyter-book build _build/stage --path-output _build/links --builder linkcheck --all -q

test: $(VENV)/.installed-test
	@echo "make test: running the tests"
	@$(BIN)/python -m pytest --numprocesses 2 tests

bench: $(VENV)/.installed
	@$(BIN)/python benchmarks/truncation.py
	@$(BIN)/python benchmarks/training.py

$(VENV)/.created:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: Python 3.11 or newer is needed, found: $$("$(PYTHON)" --version 2>&1). Name one with PYTHON=..."; exit 1; }
	@echo "make: creating the virtual environment $(VENV)"
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo "make: installing tnlib and what it needs into $(VENV) (some minutes, once)"
	@if [ "$$(uname -s)" = Linux ] && [ "$(TORCH)" != cpu ] && ! command -v nvidia-smi > /dev/null; then \
		echo "make: no NVIDIA GPU is seen here, and torch from the registry is the large CUDA build (gigabytes);"; \
		echo "make: to take PyTorch's small CPU build, stop now (Ctrl-C) and run: make $(or $(MAKECMDGOALS),book) TORCH=cpu"; fi
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "make: installing what only the tests need"
	@$(INSTALL) --editable '.[test]'
	@touch $@

clean:
	rm -rf _build
