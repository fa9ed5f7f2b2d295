# make demo, make test: from a fresh clone with only Python, a C++ compiler and make. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# An editable install: Python sources are live, and a change below csrc/ makes the stamps below old.
INSTALL := $(BIN)/python -m pip install -c constraints.txt
BUILT_FROM := setup.py pyproject.toml constraints.txt pfgm_fast/_version.py $(shell find csrc -type f)
CXX_FILE = $(shell $(or $(CXX),g++) -print-file-name=$(1))

.PHONY: demo test lint format sanitize clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/pfgm-fast demo

test: $(VENV)/.test
	$(BIN)/pytest

lint: $(VENV)/.lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.lint
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# The tests of the extension with the address and undefined-behaviour sanitizers, on a build of its own that PYTHONPATH puts
# before the installed one. -s: the report of a sanitizer that ends the process must not vanish in pytest's capture.
sanitize: $(VENV)/.test
	PFGM_SANITIZE=1 PFGM_EXT=on $(BIN)/python setup.py --quiet build --build-lib build/sanitize
	LD_PRELOAD="$(call CXX_FILE,libasan.so) $(call CXX_FILE,libubsan.so) $(call CXX_FILE,libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=build/sanitize PFGM_EXT=on PYTHONMALLOC=malloc \
	$(BIN)/pytest -s -k native --ignore=tests/test_packaging.py

clean:
	rm -rf build dist *.egg-info $(VENV)
	rm -f pfgm_fast/_C.*.so pfgm_fast/_build.txt

# PyTorch first and by its exact version: any other request may bring gigabytes of CUDA libraries.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) $(shell sed -n '/^torch==/p' constraints.txt)
	touch $@

$(VENV)/.demo: $(VENV)/.torch $(BUILT_FROM)
	$(INSTALL) -e '.[demo]'
	touch $@

$(VENV)/.test: $(VENV)/.torch $(BUILT_FROM)
	$(INSTALL) -e '.[demo,test]'
	touch $@

$(VENV)/.lint: $(VENV)/.test
	$(INSTALL) -e '.[demo,test,lint]'
	touch $@
