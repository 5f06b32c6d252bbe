# The project's habits. The first target that needs the virtual environment makes it; a changed setup.cfg brings it up to date.

PYTHON ?= python3
VENV := .venv
TESTS := tests
JOBS := 6
SECONDS :=
BENCH :=

BIN := $(VENV)/bin
RUN := $(VENV)/installed
DEV := $(VENV)/installed-dev
PIP := $(BIN)/pip --disable-pip-version-check --quiet --quiet

.PHONY: help demo cluster-demo test programs screenshot campaign bench lint format types docs man dist proto schema clean

help:
	@echo 'make demo    watch webhooks arrive (until Ctrl-C, or for SECONDS=10)'
	@echo 'make cluster-demo  several bridges share an outbox: kill any process by a key (or for SECONDS=20, by itself)'
	@echo 'make test    run the tests (or some: TESTS=tests.test_config)'
	@echo 'make programs  install the browser and the servers that tests talk to, as far as they can be had; make test does it too'
	@echo 'make screenshot  take the picture of the status page for the documentation'
	@echo 'make campaign  kill, starve and damage the bridge for some minutes, and write the result into the documentation'
	@echo 'make bench   measure what a delivery costs, beside other sidecars, for some minutes (or some of it: BENCH="relay --runs 1")'
	@echo 'make lint    check style, layout and who imports whom;  make format  mends what can be mended'
	@echo 'make types   check the types'
	@echo 'make docs    build the documentation into docs/_build/html, and the man page;  make man  the man page alone'
	@echo 'make dist    build the source distribution and the wheel into dist/'
	@echo 'make proto   generate mqhooks/pb from proto/'
	@echo 'make schema  generate mqhooks/app/schema.json, the JSON Schema of the configuration'
	@echo 'make clean   remove whatever these have made'

demo: $(RUN)
	@$(BIN)/python -m mqhooks.tools.demo $(SECONDS)

# The server of NATS comes with the development tools.
cluster-demo: $(DEV)
	@$(BIN)/python -m mqhooks.tools.clusterdemo $(SECONDS)

test: $(DEV) $(if $(filter tests tests.test_admin_page% tests.test_programs% tests.test_project_receivers%,$(TESTS)),programs)
	@# The tests start some hundred processes: none of them compiles what the others have compiled.
	@$(BIN)/python -m compileall -q mqhooks tests twisted
	@# Shuffled, always alike: then those that wait for a server don't stand side by side, and leave no processor idle.
	$(BIN)/python -m twisted.trial -j$(JOBS) --random=1 $(TESTS)

# Programs of other people: what cannot be had is told, and the tests that want it skip. Nothing else depends on them.
programs: $(DEV)
	@tools/install_programs $(BIN)/python $(CURDIR)/.programs

screenshot: $(DEV) programs
	MQHOOKS_SCREENSHOT=$(CURDIR)/docs/page.png $(BIN)/python -m twisted.trial tests.test_admin_page.Screenshot

campaign: $(DEV)
	$(BIN)/python -m tests.campaign --table docs/campaign.inc

bench: $(DEV)
	$(BIN)/python -m benchmarks $(BENCH)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(DEV)
	$(BIN)/mypy

docs: $(DEV)
	$(BIN)/sphinx-build --fail-on-warning --nitpicky --keep-going --quiet docs docs/_build/html
	@echo 'docs/_build/html/index.html'
	@$(MAKE) --no-print-directory man

# setup.cfg has it installed where man looks, if it is there.
man: $(DEV)
	@mkdir -p packaging/man
	$(BIN)/argparse-manpage --module mqhooks.app.command --function parser --prog mqhooks --project-name mqhooks \
		--manual-title 'mqhooks' --description "VerneMQ's events as webhooks" --output packaging/man/mqhooks.1
	@echo 'packaging/man/mqhooks.1'

dist: $(DEV) man
	$(BIN)/python tools/dist.py dist

proto: $(DEV)
	$(BIN)/python tools/generate_pb.py

schema: $(DEV)
	$(BIN)/python tools/generate_schema.py

clean:
	rm -rf $(VENV) .programs build dist docs/_build packaging/man _trial_temp* .hypothesis .mypy_cache .ruff_cache .import_linter_cache mqhooks.egg-info twisted/plugins/dropin.cache
	find mqhooks twisted tests benchmarks docs tools -name __pycache__ -prune -exec rm -rf {} +

need = || { echo 'mqhooks needs $(1)' >&2; exit 1; }

$(RUN): setup.cfg
	@command -v $(PYTHON) >/dev/null $(call need,Python 3.11 or newer and finds no $(PYTHON): name one with make PYTHON=/path/to/python3)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' $(call need,Python 3.11 or newer and $(PYTHON) is older: name one with make PYTHON=python3.11)
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null $(call need,the venv module of $(PYTHON): on Debian and Ubuntu install python3-venv)
	@echo 'Installing mqhooks into $(VENV) ...'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -e .
	@touch $@

$(DEV): $(RUN)
	@echo 'Installing the development tools into $(VENV) ...'
	@$(PIP) install -e '.[dev]'
	@touch $@
