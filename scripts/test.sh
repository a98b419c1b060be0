#!/usr/bin/env bash
# Set up what the tests need, then check the style and run them; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh requirements.txt tests/requirements.txt
.venv/bin/ruff check .
.venv/bin/ruff format --check --quiet .
exec .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal "$@"
