# The project's commands; `make help` lists them. All but `help` set up .venv first, when it is missing or out of date.

PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
	$(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
BIN := .venv/bin
PORT ?= 3000
BUNDLE ?= cnn
REPORT ?= reports/$(notdir $(BUNDLE))

export BENTOML_DO_NOT_TRACK ?= True
.DEFAULT_GOAL := help
.PHONY: help setup serve test browser report study ensemble data bench lint format lock pretrained

help: ## list these commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: .venv/.installed ## make .venv with the locked dependencies, for all that follows

.venv/.created: requirements.lock
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/.installed: .venv/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint requirements.lock --editable '.[dev,bench]'
	@touch $@

serve: setup ## serve the model over HTTP: PORT=3000, DROPOUT_BUNDLES=cnn (shipped bundles' names, or folders)
	$(BIN)/bentoml serve service.app:DropoutUncertainty --port $(PORT)

# Two at a time, one thread each, but for what overloads, kills and drains servers: that is not to be disturbed.
test: .venv/.scale data browser ## run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --ignore tests/faults
	$(BIN)/python -m pytest tests/faults

BROWSERS := chromium chromium-browser google-chrome
browser: ## install Debian's chromium for the tests of the page, if there is no browser and you may
	@for name in $(BROWSERS); do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		{ apt-get install -y -qq --no-install-recommends chromium || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }; } >/dev/null; \
	fi; \
	command -v chromium >/dev/null || { \
		echo "*** No Chromium: THE TESTS OF THE PAGE ARE LEFT OUT. Install it (apt-get install chromium) to run them. ***" >&2; \
		[ -z "$$REQUIRE_BROWSER" ]; }

report: setup data ## write the calibration report: BUNDLE=cnn, REPORT=reports/cnn
	$(BIN)/python -m calibration report $(BUNDLE) --out $(REPORT)

ensemble: setup data ## train the deep ensemble that the report sets beside BUNDLE=cnn, once: an hour
	$(BIN)/python -m training ensemble $(BUNDLE)

data: setup ## find or fetch Fashion-MNIST, and MNIST if it can be had, and verify them
	$(BIN)/python -m training data

.venv/.scale: .venv/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[scale]'
	@touch $@

.venv/.peers: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[peers]'
	@touch $@

bench: setup data .venv/.peers .venv/.scale ## measure speed and error, beside other libraries, into benchmarks/results
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.variance
	$(BIN)/python -m benchmarks.sampling
	$(BIN)/python -m benchmarks.http
	$(BIN)/python -m benchmarks.queue
	$(BIN)/python -m benchmarks.scale

study: setup data ## train the study's presets, in three and a half hours on two cores, and renew docs/study with them
	for preset in notebook notebook-50 rates regularisers combinations networks small-data cnn; do \
		$(BIN)/python -m training study $$preset || exit 1; \
		for file in docs/study/$$preset/*; do cp runs/studies/$$preset/$${file##*/} $$file || exit 1; done; done
	@echo "If tests/test_docs.py fails now, docs/study.md has older tables than runs/studies/*/study.md."

lint: setup ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pretrained: setup data ## train, calibrate and measure the bundles that ship anew, in about two hours on two cores
	$(BIN)/python -m training release
	rm -rf docs/report && cp -r runs/release/reports/mlp docs/report

lock: ## write requirements.lock anew, with the newest versions that pyproject.toml allows
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench,scale]'
	{ echo "# Exact versions of all dependencies, written by \`make lock\`; the Makefile gives it to pip as constraints."; \
	echo "# Made beside a CPU build of torch. What a CUDA build needs besides, torch itself requires in exact versions."; \
	$(BIN)/python -m pip freeze --all --exclude-editable | grep -v '^pip==' | sed 's/+cpu$$//'; } > requirements.lock
	touch .venv/.created .venv/.installed .venv/.scale
