#!/usr/bin/env bash
# Make .venv and install the requirements files named (without any: requirements.txt) in the versions of constraints.txt;
# does nothing when that was done before.
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
if [ ! -x .venv/bin/python ]; then
    cat >&2 <<'END'
setup.sh: making .venv. On Linux, PyPI gives the CUDA build of torch: 2.9 GB to load, 5.5 GB on disk.
The CPU build makes that 0.3 GB and 1.5 GB. To take it, stop this with Ctrl-C, then:
    python3 -m venv .venv
    .venv/bin/pip install torch -c constraints.txt --index-url https://download.pytorch.org/whl/cpu
    bash scripts/setup.sh
Other machines: docs/install.md
END
    "$python" -m venv .venv
fi
for file in "${@:-requirements.txt}"; do
    stamp=.venv/.installed-${file//\//-}
    if ! cat "$file" constraints.txt | cmp -s - "$stamp"; then
        echo "setup.sh: installing $file into .venv; pip says nothing until it is done" >&2
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$file" -c constraints.txt
        cat "$file" constraints.txt >"$stamp"  # last: a set-up that was interrupted is done again
    fi
done
