#!/usr/bin/env bash
# Installs what the tests need (into .venv; EMBEDFLEET_ENV=active: the active environment), and runs them all, whatever
# fails.
# Arguments go to pytest: bash tests/run.sh -k planner
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
use_environment "$root" dev

# Local object stores. Their packages cannot be installed beside chromadb's (tests/object_store.py).
if [ -z "${OBJECT_STORES:-}" ]; then
  export OBJECT_STORES=$root/.venv/object_stores
  wanted=$(cksum <"$root/tests/object_stores.txt")
  if ! grep -qxF "$wanted" "$OBJECT_STORES/installed" 2>/dev/null; then
    say "Installing local object stores (moto, gcp-storage-emulator) into $OBJECT_STORES: about 30 MB to download, 140 MB on disk."
    "$PYTHON" -m venv "$OBJECT_STORES"
    "$OBJECT_STORES/bin/python" -m pip install --quiet --disable-pip-version-check \
      --requirement "$root/tests/object_stores.txt"
    printf '%s\n' "$wanted" >"$OBJECT_STORES/installed"
  fi
fi

cd "$root"
failed=0
"$PYTHON" -m ruff check . || failed=1
"$PYTHON" -m ruff format --check . || failed=1
"$(dirname "$PYTHON")/lint-imports" --no-logo --no-cache || failed=1
if [ $# -gt 0 ]; then
  "$PYTHON" -m pytest "$@" || failed=$?
  exit "$failed"
fi
# One run, so that all failures stand together. Two processes of one thread each take whole files, the longest first
# (tests/conftest.py): ranks of the one fill what the other waits for.
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=10 || failed=$?
exit "$failed"
