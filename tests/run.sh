#!/usr/bin/env bash
# Installs what the tests need (into .venv; EMBEDFLEET_ENV=active: the active environment), and runs them all, whatever
# fails.
# Arguments go to pytest: bash tests/run.sh -k planner
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
use_environment "$root" dev

# A local S3. Its packages cannot be installed beside chromadb's (tests/object_store.py).
if [ -z "${MOTO_SERVER:-}" ]; then
  moto=$root/.venv/moto
  wanted=$(cksum <"$root/tests/moto.txt")
  if ! grep -qxF "$wanted" "$moto/installed" 2>/dev/null; then
    say "Installing a local S3 (moto) into $moto: about 30 MB to download, 140 MB on disk."
    "$PYTHON" -m venv "$moto"
    "$moto/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$root/tests/moto.txt"
    printf '%s\n' "$wanted" >"$moto/installed"
  fi
  export MOTO_SERVER=$moto/bin/moto_server
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
