#!/usr/bin/env bash
# Lint, types and layers first (seconds), then the fast tests, then the slow ones; one coverage report for both.
set -euo pipefail
cd "$(dirname "$0")/.."
set -x
ruff check .
ruff format --check .
mypy
lint-imports
export OMP_NUM_THREADS=1
pytest -q -n 2 -m "not slow" --cov --cov-report=
pytest -q -n 2 -m slow --cov --cov-append --cov-report=term:skip-covered
