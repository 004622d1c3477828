# shellcheck shell=bash
# Sourced by quickstart.sh and tests/run.sh: `use_environment ROOT EXTRAS` leaves $PYTHON at an interpreter in which
# embedfleet[EXTRAS] is installed at the tested versions: that of ROOT/.venv, which it creates.
#   EMBEDFLEET_ENV=active   the active environment in place of ROOT/.venv; pip changes what it holds to the versions of
#                           constraints.txt, torch and transformers among them

say() { printf '%s\n' "$*" >&2; }

find_python() {
  local name
  for name in python3.11 python3.12 python3.13 python3 python; do
    if command -v "$name" >/dev/null && is_new_enough "$name"; then
      command -v "$name"
      return
    fi
  done
  say "embedfleet needs Python 3.11 or newer, and PATH has none. Install one, then run this again."
  return 2
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Prints the interpreter of the active environment.
active_python() {
  if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    say "EMBEDFLEET_ENV=active: no environment is active. Activate one, or leave EMBEDFLEET_ENV out: then .venv is used."
    return 2
  fi
  local python
  python=$(command -v python)
  if ! is_new_enough "$python"; then
    say "EMBEDFLEET_ENV=active: $python is $("$python" -V), and embedfleet needs Python 3.11 or newer."
    return 2
  fi
  printf '%s' "$python"
}

# On Linux (x86-64, Python 3.11) with the CPU build of torch, 2026-11-29. On disk: the installed files, counted. To
# download: half of the wheels weighed (torch has 192 MB), the others at the same ratio to their installed files.
size_of() {
  case $1 in
    dev) printf '0.8 GB to download, 2.8 GB on disk' ;;
    *) printf '0.6 GB to download, 2.1 GB on disk' ;;
  esac
}

use_environment() {
  local root=$1 extras=$2 folder stamp wanted
  case ${EMBEDFLEET_ENV:-} in
    '')
      folder=$root/.venv
      PYTHON=$folder/bin/python
      ;;
    active)
      PYTHON=$(active_python) || return
      folder=$("$PYTHON" -c 'import sys; print(sys.prefix)')
      ;;
    *)
      say "EMBEDFLEET_ENV=$EMBEDFLEET_ENV: the only value is active (the active environment); without it .venv is used."
      return 2
      ;;
  esac
  stamp=$folder/.embedfleet-installed
  # Installing again takes seconds, but needs the network: it is left out while nothing it depends on has changed.
  wanted="$extras $(cat "$root/setup.cfg" "$root/constraints.txt" | cksum) $root"
  if [ -x "$PYTHON" ] && grep -qxF "$wanted" "$stamp" 2>/dev/null; then
    say "Nothing to download: $folder holds embedfleet[$extras]."
    return
  fi
  say "Installing embedfleet[$extras] into $folder: about $(size_of "$extras") with the CPU build of torch."
  if [ -n "${EMBEDFLEET_ENV:-}" ]; then
    say "It is the active environment: torch, transformers and others in it change to the versions of constraints.txt."
  fi
  if [ "$(uname -s)" = Linux ]; then
    say "PyPI's torch for Linux is the CUDA build, several GB more. Without an NVIDIA GPU, stop here (Ctrl-C) and set"
    say "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu first: pip then prefers the CPU build."
  fi
  if [ ! -x "$PYTHON" ]; then
    local base
    base=$(find_python) || return
    "$base" -m venv "$folder" || return
  fi
  "$PYTHON" -m pip install --quiet --disable-pip-version-check \
    --constraint "$root/constraints.txt" --editable "${root}[$extras]" || return
  printf '%s\n' "$wanted" >>"$stamp"
}
