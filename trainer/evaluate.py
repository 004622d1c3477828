"""Evaluation of a model folder on a retrieval set: python -m trainer.evaluate --model M [--baseline M0] --data SET."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.output import check, check_output_file
from data_prep.problems import guarded
from data_prep.progress import say
from trainer.folder import POOLINGS
from trainer.retrieval import METRICS, RetrievalSet, load_set, means, paired_bootstrap, rank_documents, score_run
from trainer.runlog import write_json

if TYPE_CHECKING:
    from trainer.config import ModelConfig


FEW_QUERIES = 50


def evaluate_engine(engine, tokenizer, spec, data: RetrievalSet) -> dict[str, dict[str, float]] | None:
    """Per-query metrics of the model an engine holds; on rank 0, None elsewhere. Collective: all ranks embed."""
    from trainer.encode import encode

    queries = encode(engine, tokenizer, data.query_texts, spec.query_prompt, spec.query_max_len)
    documents = encode(engine, tokenizer, data.doc_texts, spec.passage_prompt, spec.passage_max_len)
    if engine.world.rank:
        return None
    return score_run(data.qrels, rank_documents(queries.numpy(), documents.numpy(), data))


def evaluate_folder(config: "ModelConfig", data: RetrievalSet, device: str = "auto") -> dict[str, dict[str, float]]:
    """Per-query metrics of a model folder or hub id, in one process."""
    import torch

    from trainer.collectives import World
    from trainer.config import OptimConfig
    from trainer.engine import TorchEngine
    from trainer.model import load_embedder
    from trainer.runtime import pick_device

    embedder, tokenizer, spec, _ = load_embedder(config)
    for note in spec.notes:
        say(f"{config.path}: {note}")
    engine = TorchEngine(embedder, OptimConfig(), World(), torch.device(pick_device(device)), None)
    return evaluate_engine(engine, tokenizer, spec, data)


def compare(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> dict[str, dict]:
    """metric -> base, tuned, difference and its 95 % interval over the same queries."""
    table = {}
    for name in METRICS:
        base = np.array([before[query][name] for query in before])
        tuned = np.array([after[query][name] for query in before])
        low, high = paired_bootstrap(base, tuned)
        table[name] = {
            "base": float(base.mean()),
            "tuned": float(tuned.mean()),
            "difference": float((tuned - base).mean()),
            "interval_95": [low, high],
        }
    return table


def _print(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{result['data']}: {result['queries']} queries, {result['documents']} documents"
    if "comparison" not in result:
        table = Table("metric", "value", title=title)
        for name, value in result["metrics"].items():
            table.add_row(name, f"{value:.4f}")
    else:
        table = Table("metric", "base", "tuned", "difference", "95 % interval", title=title)
        for name, row in result["comparison"].items():
            low, high = row["interval_95"]
            cells = (f"{row['base']:.4f}", f"{row['tuned']:.4f}", f"{row['difference']:+.4f}")
            table.add_row(name, *cells, f"{low:+.4f} … {high:+.4f}")
    Console().print(table)


def _model(path: str, args: argparse.Namespace) -> "ModelConfig":
    """The model as the flags say, its folder read once: what cannot be evaluated is told before any work."""
    from trainer.config import parse_section
    from trainer.folder import fetch, read_spec

    values = {"path": path, "pooling": args.pooling, "query_max_len": args.max_len, "passage_max_len": args.max_len}
    values |= {"query_prompt": args.query_prompt, "passage_prompt": args.passage_prompt}
    config = parse_section("model", values, "the command line")
    read_spec(config, fetch(path))
    return config


def run(args: argparse.Namespace) -> int:
    data = load_set(args.data)
    for note in data.notes:
        say(note)
    configs = {path: _model(path, args) for path in (args.model, args.baseline) if path}
    if args.json:
        check(check_output_file(Path(args.json), suffix=".json"))
    tuned = evaluate_folder(configs[args.model], data, args.device)
    result = {
        "model": args.model,
        "data": str(args.data),
        "queries": len(tuned),
        "documents": len(data.doc_ids),
        "metrics": means(tuned),
    }
    if args.baseline:
        base = evaluate_folder(configs[args.baseline], data, args.device)
        result |= {"baseline": args.baseline, "comparison": compare(base, tuned)}
    if len(tuned) < FEW_QUERIES:
        say(f"only {len(tuned)} queries: differences of this size say little (below {FEW_QUERIES})")
    _print(result)
    if args.json:
        write_json(Path(args.json), result)
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.evaluate",
        description="nDCG@10, MRR@10, MAP and recall of a model on a retrieval set; with a baseline also the "
        "difference and its paired bootstrap interval.",
        epilog="example: python -m trainer.evaluate --model runs/mine/final --baseline MODEL --data shards/",
    )
    parser.add_argument("--model", required=True, help="model folder or hub id")
    parser.add_argument("--baseline", help="model to compare with, e.g. the one before training")
    parser.add_argument("--data", required=True, help="retrieval set, or shard folder with an eval split")
    parser.add_argument("--json", help="write the result here as well")
    parser.add_argument("--max-len", type=int, help="tokens of queries and passages; default: the model's own")
    parser.add_argument("--pooling", choices=list(POOLINGS), help="default: the model folder's own")
    parser.add_argument("--query-prompt", help="put before every query; default: the model folder's own")
    parser.add_argument("--passage-prompt", help="put before every document; default: the model folder's own")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "mps", "cuda"])
    args = parser.parse_args(argv)
    return guarded(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
