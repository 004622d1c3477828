#!/usr/bin/env bash
# Installs what the tests need (into the active environment or .venv) and runs them, cheapest first.
# Arguments go to pytest: bash tests/run.sh -k planner
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
use_environment "$root" dev

cd "$root"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
if [ $# -gt 0 ]; then
  exec "$PYTHON" -m pytest "$@"
fi
# Unit tests run in two processes of one thread each; the others start ranks of their own.
OMP_NUM_THREADS=1 "$PYTHON" -m pytest tests/unit -n 2 --dist loadfile
exec "$PYTHON" -m pytest tests/multiprocess tests/end_to_end
