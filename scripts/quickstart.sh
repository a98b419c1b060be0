#!/usr/bin/env bash
# Teacher -> LAD student -> evaluation -> prediction on the bundled sample, on the CPU, from a fresh clone.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh requirements.txt
echo TODO
