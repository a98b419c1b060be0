#!/usr/bin/env bash
# Make .venv and install the pinned requirements given as arguments; does nothing when that was done before.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "setup.sh: error: needs Python 3.11 or newer; name one with PYTHON=/path/to/python3.11" >&2
    exit 2
fi
mkdir -p .venv
exec 9>.venv/.setup.lock
flock 9  # two scripts may be started side by side
for file in "$@"; do
    stamp=.venv/.installed-${file//\//-}
    if ! cmp -s "$file" "$stamp"; then
        [ -x .venv/bin/python ] || "$python" -m venv .venv
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$file"
        cp "$file" "$stamp"  # last: a set-up that was interrupted is done again
    fi
done
