"""Evaluation of a model on a retrieval set: python -m trainer.evaluate --model M [--baseline M0] --data SET.

In place of a set: --collection of a store with --pairs that name its chunks.
"""

import argparse
import sys
from pathlib import Path

from data_prep.common.console import say
from data_prep.common.errors import BadInput, guarded
from data_prep.common.files import check, check_output_file, write_json
from data_prep.common.paths import with_homes
from data_prep.reading.retrieval_sets import RetrievalSet, load_collection, load_set
from data_prep.stores.flags import add_store, store_flags, store_of, where_of
from trainer.inference.evaluation import compare, evaluate_folder
from trainer.inference.flags import add_as_stated, add_model, models_of
from trainer.inference.metrics import means
from trainer.inference.reading import describe, facts_of
from trainer.inference.text_encoder import TextEncoder

FEW_QUERIES = 50


def _print(result: dict, head: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

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
    console = Console()
    for line in head:
        console.print(Text(line), soft_wrap=True)
    console.print(table)


def _data(args: argparse.Namespace) -> RetrievalSet:
    given = {name for name in ("data", "collection", "pairs") if getattr(args, name) is not None}
    if given not in ({"data"}, {"collection", "pairs"}):
        raise BadInput("name what is evaluated on: --data SET, or --collection NAME of a store with --pairs FILE")
    if args.data is not None:
        check(store_flags(args))
        return load_set(args.data, args.strict, args.ignore_identical_ids)
    check(["--ignore-identical-ids: belongs to --data SET"] if args.ignore_identical_ids else [])
    return load_collection(store_of(args), args.pairs, where_of(args), args.strict)


def run(args: argparse.Namespace) -> int:
    data = _data(args)
    for note in data.notes:
        say(note)
    if args.ignore_identical_ids and not data.ignored_documents():
        say(f"--ignore-identical-ids changes nothing: no query of {data.name} has the id of a document")
    configs = models_of(args.model, args.baseline, args)
    specs = [TextEncoder(config).spec for config in configs]  # reads the folders, so that problems show before any work
    if args.json:
        check(check_output_file(Path(args.json), suffix=".json"))
    tuned = evaluate_folder(configs[0], data, args.device)
    result = {
        "model": args.model,
        "data": str(args.data or args.collection),
        "queries": len(tuned),
        "documents": len(data.doc_ids),
        "metrics": means(tuned),
        "read": facts_of(specs[0]),
    }
    if args.ignore_identical_ids:
        result["ignored_identical_ids"] = len(data.ignored_documents())
    if args.baseline:
        base = evaluate_folder(configs[1], data, args.device)
        result |= {"baseline": args.baseline, "comparison": compare(base, tuned), "baseline_read": facts_of(specs[1])}
    if len(tuned) < FEW_QUERIES:
        say(f"only {len(tuned)} queries: differences of this size say little (below {FEW_QUERIES})")
    _print(result, describe({"tuned": specs[0], "base": specs[1]} if args.baseline else {args.model: specs[0]}))
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
    parser.add_argument("--data", metavar="SET", help="retrieval set, or shard folder with an eval split")
    text = "refuse a set with empty texts, or with judgements of queries or documents that it lacks (default: say so)"
    parser.add_argument("--strict", action="store_true", help=text)
    text = "do not retrieve the document with the query's own id, as BEIR does (ArguAna)"
    parser.add_argument("--ignore-identical-ids", action="store_true", help=text)
    parser.add_argument("--pairs", type=Path, metavar="FILE", help="pairs that name the chunks of --collection")
    parser.add_argument("--json", help="write the result here as well")
    add_store(parser, required=False)
    add_as_stated(parser, "--baseline")
    add_model(parser)
    return guarded(lambda: run(with_homes(parser.parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())
