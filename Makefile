
.PHONY: help sweep test test-avx2 test-slow test-benchmarks soak app check bench
PYTHON := .venv/bin/python

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*  ## /make \1	/p' Makefile | expand -t 18

sweep: .venv/installed  ## search, confirm and promote on drawn images: a few minutes
	$(PYTHON) run_sweep.py configs/quick.json --image-size 64 --epochs 4 --no-baseline

app: .venv/installed  ## serve the champion at http://127.0.0.1:7860
	$(PYTHON) -m catdog.app

test: .venv/installed  ## run the tests; COVERAGE=yes: also measure coverage, in 1.5 times the time
	$(PYTHON) -m pytest -n 4 --dist worksteal -m "not slow and not benchmark" $(if $(COVERAGE),--cov --cov-report=term --cov-fail-under=90)

test-avx2: .venv/installed  ## run the tests of catdog/, except the app's, as on a CPU with AVX2 and nothing newer
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(PYTHON) -m pytest -n 4 --dist worksteal -m "not slow" \
	  tests/catdog --ignore tests/catdog/test_app.py --ignore tests/catdog/serving/test_ui.py

test-slow: .venv/installed  ## run the tests that take minutes: faults of Comet, the app under load, commands of the docs
	$(PYTHON) -m pytest -n 4 --dist worksteal -m slow

test-benchmarks: .venv/installed  ## every benchmark in a small form: a quarter of an hour
	$(PYTHON) -m pytest -n 2 --dist worksteal -m benchmark

soak: .venv/installed  ## inject 200 random faults into real sweeps, then the same kinds into other programs
	$(PYTHON) -m tests.soak
	$(PYTHON) -m tests.soak --compare

check: .venv/installed  ## check style, format and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

bench: .venv/installed  ## run most benchmarks; benchmarks/README.md has the command of each
	$(PYTHON) benchmarks/training.py
	$(PYTHON) benchmarks/cores.py
	$(PYTHON) benchmarks/idle.py
	$(PYTHON) benchmarks/tracking.py
	$(PYTHON) benchmarks/promotion.py
	$(PYTHON) benchmarks/report.py
	$(PYTHON) benchmarks/replay.py
	$(PYTHON) benchmarks/forecast.py
	$(PYTHON) benchmarks/serving.py

.venv/installed: requirements.lock
	if command -v uv >/dev/null; then \
	  uv venv --quiet --allow-existing .venv && uv pip install --quiet --compile-bytecode --python $(PYTHON) -r requirements.lock; \
	else \
	  python3 -m venv .venv && $(PYTHON) -m pip install --quiet -r requirements.lock; \
	fi
	touch $@
