# Sourced by quickstart.sh and tests/run.sh: `use_environment EXTRAS` leaves $PYTHON at an interpreter in which
# embedfleet[EXTRAS] is installed at the tested versions. It takes the active environment, or makes .venv in the checkout.

say() { printf '%s\n' "$*" >&2; }

find_python() {
  local name
  for name in python3.11 python3.12 python3.13 python3 python; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  say "embedfleet needs Python 3.11 or newer on the PATH; none was found."
  return 2
}

use_environment() {
  local root=$1 extras=$2 stamp wanted
  if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    PYTHON=$(command -v python)
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
      say "the active environment has Python $("$PYTHON" -V | cut -d' ' -f2); embedfleet needs 3.11 or newer."
      return 2
    }
  else
    if [ ! -x "$root/.venv/bin/python" ]; then
      local base
      base=$(find_python) || return
      say "making $root/.venv with $base"
      "$base" -m venv "$root/.venv" || return
    fi
    PYTHON=$root/.venv/bin/python
  fi
  # Installing again takes seconds, but needs the network: it is left out while nothing it depends on has changed.
  stamp=$("$PYTHON" -c 'import sys; print(sys.prefix)')/.embedfleet-installed
  wanted="$extras $(cat "$root/setup.cfg" "$root/constraints.txt" | cksum) $root"
  if ! grep -qxF "$wanted" "$stamp" 2>/dev/null; then
    say "installing embedfleet[$extras] at the versions of constraints.txt (a minute or two)"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check \
      --constraint "$root/constraints.txt" --editable "$root[$extras]" || return
    printf '%s\n' "$wanted" >>"$stamp"
  fi
}
