
.PHONY: help sweep test test-avx2 test-slow soak app check bench
PYTHON := .venv/bin/python

help:  ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*  ## /make \1	/p' Makefile | expand -t 18

sweep: .venv/installed  ## 12 trials on drawn pictures: a ranked table and a promoted model in a few minutes
	$(PYTHON) run_sweep.py configs/quick.json --image-size 64 --epochs 4 --no-baseline

app: .venv/installed  ## the champion as a web page, at http://127.0.0.1:7860
	$(PYTHON) -m catdog.app

test: .venv/installed  ## the tests; COVERAGE=yes: with the coverage of our own lines, which takes half as long again
	$(PYTHON) -m pytest -n 4 --dist worksteal -m "not slow" $(if $(COVERAGE),--cov --cov-report=term --cov-fail-under=90)

test-avx2: .venv/installed  ## the tests of catdog/, but for the app's, as on a CPU with AVX2 and nothing newer
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(PYTHON) -m pytest -n 4 --dist worksteal -m "not slow" \
	  $(filter-out tests/catdog/test_app.py tests/catdog/serving/test_ui.py,$(OF_CATDOG)) tests/catdog/test_bit_exact.py

test-slow: .venv/installed  ## the tests that take minutes: all that Comet can do to a sweep, the app under load
	$(PYTHON) -m pytest -n 4 --dist worksteal -m slow

soak: .venv/installed  ## 200 random faults over real sweeps, then the same faults on what others do
	$(PYTHON) -m tests.soak
	$(PYTHON) -m tests.soak --compare

check: .venv/installed  ## style, formatting, types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

bench: .venv/installed  ## most tables of the README; beside each is its own command
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
