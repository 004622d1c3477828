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
exec "$PYTHON" -m pytest tests/unit tests/multiprocess tests/end_to_end
