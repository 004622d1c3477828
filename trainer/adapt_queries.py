"""A map of query vectors for a collection that is not embedded anew: python -m trainer.adapt_queries.

Alone, or on the ranks of torchrun and the like: each scores its share of the documents.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from data_prep.common.console import result, say_next
from data_prep.common.errors import BadInput
from data_prep.common.files import check, existing_parent, unfinished_name
from data_prep.common.parser import Parser
from data_prep.common.paths import with_homes
from data_prep.common.sole_writer import sole_writer
from data_prep.stores.flags import add_store, store_of, store_words, where_of
from trainer.engine.join import joined
from trainer.engine.leaving import guarded_ranks
from trainer.inference.flags import add_model, add_precision, models_of
from trainer.inference.text_encoder import TextEncoder
from trainer.query_side.adapt import BETTER, Shape, Source, adapt
from trainer.query_side.adapter import QueryAdapter
from trainer.query_side.exports.folder import write_folder
from trainer.query_side.exports.onnx_graph import onnx_problems
from trainer.query_side.fit import METRIC
from trainer.query_side.flags import add_either_model, closed_model, searches
from trainer.query_side.lora.folder import write_lora_folder
from trainer.query_side.lora.query_encoder import RANK, QueryEncoder
from trainer.query_side.lora.training import LORA
from trainer.query_side.maps import KINDS, LINEAR


def show(adapter: QueryAdapter, output: Path) -> None:
    """Prints the metrics before and after, and the verdict."""
    from rich.console import Console
    from rich.table import Table

    facts = adapter.facts
    table = Table("metric", "before", "after", "difference", "95 % interval")
    for name, row in facts["metrics"].items():
        low, high = row["interval_95"]
        cells = f"{row['base']:.4f}", f"{row['tuned']:.4f}", f"{row['difference']:+.4f}", f"{low:+.4f} … {high:+.4f}"
        table.add_row(name, *cells)
    Console().print(table)
    queries = f"{facts['queries']['report']:,} queries of documents that trained nothing, by the store's own search"
    if facts["verdict"] == BETTER:
        result(f"verdict: better: {METRIC} of {queries}; {output} maps the queries")
    else:
        result(f"verdict: leave it as it is: no gain in {METRIC} of {queries}; {output} is the identity")


def _taken(output: Path) -> list[str]:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        return [f"--output {output}: exists and is not an empty folder; name a new one"]
    return []


def _check(args: argparse.Namespace) -> None:
    """Raises BadInput with every problem that shows before anything is loaded."""
    output = Path(args.output)
    problems = _taken(output)
    if not (blocked := existing_parent(output.parent)).is_dir():
        problems.append(f"--output {output}: {blocked} is a file, so nothing can be written below it")
    if not Path(args.pairs).exists():
        problems.append(f"--pairs {args.pairs}: no such file")
    if args.rank is not None and args.map not in (LINEAR, LORA):
        problems.append(f"--rank {args.rank}: belongs to --map {LINEAR} or {LORA}")
    if args.rank is not None and args.rank < 1:
        problems.append(f"--rank {args.rank}: must be 1 or more")
    if args.map == LORA and args.endpoint_model:
        problems.append(f"--map {LORA}: trains the model itself, and --endpoint-model is closed; use {LINEAR} or mlp")
    if args.map == LORA and args.onnx:
        problems.append(f"--onnx: there is no graph of --map {LORA}, whose query encoder is a whole model")
    check(problems + (onnx_problems() if args.onnx else []))


@contextmanager
def _writing(output: Path, vectors: Path) -> Iterator[None]:
    """A block in which no other process writes the output, whose vectors are removed at its end."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with sole_writer(vectors, output):
        check(_taken(output))  # by a process that has ended since the first look
        yield


def write(
    output: Path, adapter: QueryAdapter, encoder: TextEncoder | None, learner: QueryEncoder | None, onnx: bool
) -> None:
    if learner:
        write_lora_folder(output, adapter, encoder, learner)
    else:
        write_folder(output, adapter, encoder, onnx)


def run(args: argparse.Namespace) -> None:
    _check(args)
    source, output = Source(store_of(args), where_of(args), args.pairs), Path(args.output)
    closed = closed_model(args)
    encoder = closed or TextEncoder(*models_of(args.model, None, args))
    vectors = unfinished_name(output.with_name(f"{output.name}.vectors"))
    with joined(args.device, args.precision) as runtime, ExitStack() as stack:
        if closed:
            closed.world = runtime.world
        else:
            encoder.runtime = runtime
        if args.map == LINEAR and args.rank is not None and args.rank >= encoder.size:
            raise BadInput(f"--rank {args.rank}: must be below the {encoder.size} numbers of a vector")
        runtime.world.on_first(lambda: stack.enter_context(_writing(output, vectors)))
        adapter, learner = adapt(source, encoder, runtime, Shape(args.map, args.rank), vectors)
        runtime.world.on_first(lambda: write(output, adapter, None if closed else encoder, learner, args.onnx))
        if runtime.is_main:
            show(adapter, output)
            if adapter.facts["verdict"] == BETTER:
                say_next(*searches(args, output), *store_words(args, args.collection))


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        "python -m trainer.adapt_queries",
        "Trains a map of query vectors against the vectors of a collection, which stay as they are.",
        "python -m trainer.adapt_queries --model MODEL --path db --collection docs --pairs F.jsonl --output OUT",
    )
    add_either_model(parser, "folder or hub id of the model that made the vectors")
    text = "pairs that name chunks of the collection (chunk_id, or doc_ids of records), such as generate writes"
    parser.add_argument("--pairs", required=True, type=Path, metavar="FILE", help=text)
    parser.add_argument(
        "--output",
        required=True,
        metavar="FOLDER",
        help="new folder for the adapter; it changes nothing if no gain was measured",
    )
    text = "residual linear map (default), residual network with one hidden layer, or LoRA on the encoder of queries"
    parser.add_argument("--map", choices=[*KINDS, LORA], default=LINEAR, help=text)
    text = f"rank of the linear map (default: full), or of LoRA (default: {RANK})"
    parser.add_argument("--rank", type=int, metavar="R", help=text)
    parser.add_argument("--onnx", action="store_true", help="write query_adapter.onnx too")
    add_store(parser)
    add_model(parser)
    add_precision(parser)
    return guarded_ranks(lambda: run(with_homes(parser.parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())
