"""Evaluation of a model: python -m trainer.evaluate --model M [--baseline M0] --data SET…

A set is a retrieval set, a shard folder with an eval split, or a file of scored pairs. In place of sets: --collection
of a store with --pairs that name its chunks. A closed model (--endpoint-model) is measured by the store's own search.
Alone, or on the ranks of torchrun and the like: each embeds and searches its share, rank 0 reports.
"""

import argparse
import sys
from pathlib import Path

from data_prep.common.console import say, say_next
from data_prep.common.errors import BadInput, collect, nearest
from data_prep.common.files import check, check_output_file, write_json
from data_prep.common.parser import Parser
from data_prep.common.paths import with_homes
from data_prep.reading.retrieval_sets import RetrievalSet, load_collection, load_evaluation
from data_prep.reading.scored_pairs import ScoredPairs
from data_prep.remote.location import location
from data_prep.stores.flags import add_store, store_flags, store_of, store_words, where_of
from data_prep.stores.open import open_collection
from trainer.distributed.device import precision_name
from trainer.distributed.launcher_claims import world_size
from trainer.engine.join import joined
from trainer.engine.leaving import guarded_ranks
from trainer.engine.start import Runtime
from trainer.evaluation.compare import Scores
from trainer.evaluation.metric_names import KNOWN, KNOWN_OF_PAIRS, check_names, unmeasured
from trainer.evaluation.quantised import QUANTISED, RESCORED
from trainer.evaluation.result import SetResult
from trainer.evaluation.tables import show
from trainer.evaluation.variants import Variant, evaluate_variants
from trainer.inference.flags import add_as_stated, add_model, add_precision, models_of
from trainer.inference.reading import describe, facts_of
from trainer.inference.text_encoder import TextEncoder
from trainer.model_folder.spec import ModelSpec
from trainer.query_side.encoder import AdaptedEncoder
from trainer.query_side.flags import add_adapter, add_either_model, closed_model, searches
from trainer.query_side.in_store import measure_in_store
from trainer.run_dir.verdict import unchanged

FEW_QUERIES = 50

Sets = dict[str, RetrievalSet | ScoredPairs]  # by path, or by the name of a collection


def _sets(args: argparse.Namespace) -> Sets:
    """Reads what is evaluated on. Raises BadInput with the problems of all sets."""
    given = {name for name in ("data", "collection", "pairs") if getattr(args, name) is not None}
    if given not in ({"data"}, {"collection", "pairs"}):
        raise BadInput("name what is evaluated on: --data SET…, or --collection NAME of a store with --pairs FILE")
    if args.data is None:
        check(["--ignore-identical-ids: belongs to --data SET"] if args.ignore_identical_ids else [])
        data = load_collection(store_of(args), args.pairs, where_of(args), args.strict, args.by)
        return {args.collection: data}
    problems = store_flags(args)
    problems += [f"--data {path}: stands twice" for path in sorted({p for p in args.data if args.data.count(p) > 1})]
    options = args.strict, args.ignore_identical_ids, args.by
    sets = {path: collect(problems, load_evaluation, path, *options) for path in dict.fromkeys(args.data)}
    check(problems)
    return sets


def _check(args: argparse.Namespace, sets: Sets) -> None:
    """Raises BadInput with every option that does not fit the sets."""
    problems = unmeasured(sets.values(), args.metrics, "--metrics")
    problems += [f"--dims {size}: must be 1 or more" for size in args.dims if size < 1]
    if args.dims and args.query_adapter:
        problems.append("--dims: an adapter maps whole vectors; leave out this or --query-adapter")
    parts = [part for data in sets.values() for part in data.parts]
    if args.quantised and not any(isinstance(part, RetrievalSet) for part in parts):
        problems.append("--quantised: is about search, and no set has judgements")
    if args.by is not None and not any(part.categories for part in parts):
        fields = [*dict.fromkeys(name for part in parts for name in part.fields)]
        known = f"Fields: {', '.join(fields)}" if fields else "There is no metadata"
        problems.append(f"--by {args.by}: no query or document has this field.{nearest(args.by, fields)} {known}")
    if args.json:
        read = [*map(location, args.data or ()), args.pairs]
        problems += check_output_file(Path(args.json), read, suffix=".json", flag="--json")
    check(problems)


def _say_notes(args: argparse.Namespace, sets: Sets) -> None:
    if args.as_stated and not args.baseline:
        say("--as-stated changes nothing: there is no --baseline")
    for data in sets.values():
        for note in data.notes:
            say(note)
        for part in data.parts:
            ids = part.ignored_documents() if isinstance(part, RetrievalSet) else {}
            if args.ignore_identical_ids and not ids:
                say(f"--ignore-identical-ids changes nothing: no query of {part.name} has the id of a document")
            if args.by is not None and not part.categories:
                say(f"--by {args.by}: nothing of {part.name} has this field")
            if args.quantised and isinstance(part, ScoredPairs):
                say(f"--quantised: is about search, so the scored pairs of {part.name} keep their float vectors")


def _measure(
    encoder: TextEncoder, sets: Sets, args: argparse.Namespace, runtime: Runtime
) -> list[dict[Variant, Scores]]:
    """Returns the scores of every part of the sets, with one loaded model; on rank 0. Collective."""
    encoder.runtime = runtime
    if isinstance(encoder, AdaptedEncoder):
        encoder.cut_documents()
    options = args.metrics, args.dims, args.quantised
    return [evaluate_variants(encoder, part, *options) for data in sets.values() for part in data.parts]


def _json(results: list[SetResult], sets: Sets) -> dict:
    """Returns the numbers of all sets: those of one set by themselves, those of several as a list `sets`."""
    parts, listed = iter(results), []
    for path, data in sets.items():
        first, *others = (next(parts).to_json() for _ in data.parts)
        listed.append({"data": path} | first | ({"scored_pairs": others[0]} if others else {}))
    return listed[0] if len(listed) == 1 else {"sets": listed}


def run(args: argparse.Namespace) -> int:
    check_names(args.metrics, "--metrics")
    if args.endpoint_model is not None:
        return _run_closed(args)
    closed_model(args)  # refuses the flags of one
    sets = None if args.collection else _sets(args)
    configs = models_of(args.model, args.baseline, args)
    encoders = [TextEncoder(config, args.device) for config in configs]  # reads folders: problems show before any work
    if args.query_adapter:
        encoders[0] = AdaptedEncoder(configs[0], args.query_adapter, args.device)
    specs = [encoder.spec for encoder in encoders]
    with joined(args.device, args.precision) as runtime:
        sets = sets or runtime.world.on_first(lambda: _sets(args))  # one process at a time may open some stores
        runtime.world.on_first(lambda: _begin(args, sets))
        measured = [_measure(encoders.pop(0), sets, args, runtime) for _ in specs]  # one model in memory at a time
        if runtime.is_main:
            _report(args, sets, specs, measured, precision_name(runtime.dtype))
    return 0


def _run_closed(args: argparse.Namespace) -> int:
    """Measures a closed model on a collection, by the store's own search; with an adapter also without it."""
    wrong = [name for name in ("data", "baseline", "as_stated", "dims", "quantised") if getattr(args, name)]
    mend = "belongs to --model; --endpoint-model is measured on --collection with --pairs"
    check([f"--{name.replace('_', '-')}: {mend}" for name in wrong])
    if world_size() > 1:
        raise BadInput(f"--endpoint-model with {world_size()} ranks: a store is searched by one process; start one")
    sets = _sets(args)
    _begin(args, sets)
    adapters = [args.query_adapter, None] if args.query_adapter else [None]
    encoders = [closed_model(args, adapter) for adapter in adapters]
    (data,) = sets.values()
    with open_collection(store_of(args)) as collection:
        measured = [measure_in_store(one, collection, where_of(args), data, args.metrics) for one in encoders]
    results, name = [SetResult(data, *measured)], encoders[0].name
    _warn_of_few(results)
    show(results, [f"{name}, by the store's own search", *_adapter_line(args)])
    if args.json:
        write_json(Path(args.json), {"model": name} | _json(results, sets) | _adapter_fact(args))
    _say_next(args, sets)
    return 0


def _adapter_line(args: argparse.Namespace) -> list[str]:
    of = "tuned" if args.baseline or args.endpoint_model else args.model
    return [f"queries of {of} pass {args.query_adapter}"] if args.query_adapter else []


def _adapter_fact(args: argparse.Namespace) -> dict[str, str]:
    return {"query_adapter": str(args.query_adapter)} if args.query_adapter else {}


def _begin(args: argparse.Namespace, sets: Sets) -> None:
    _check(args, sets)
    _say_notes(args, sets)


def _report(
    args: argparse.Namespace, sets: Sets, specs: list[ModelSpec], measured: list[list[dict]], precision: str
) -> None:
    """Prints and writes the metrics. measured: of the model and, if there is one, of the baseline; see _measure."""
    parts = [part for data in sets.values() for part in data.parts]
    results = [SetResult(part, *of_models) for part, *of_models in zip(parts, *measured)]
    _warn_of_few(results)
    head = describe({"tuned": specs[0], "base": specs[1]} if args.baseline else {args.model: specs[0]})
    head += unchanged(args.model, args.baseline) if args.baseline else []
    head += _adapter_line(args)
    head += [f"embedded in {precision}"] if precision != "fp32" else []
    if args.quantised:
        head.append(f"rescored: the first {RESCORED} documents, by the query's own floats and the quantised document")
    show(results, head)
    if args.json:
        read = {"read": facts_of(specs[0]), "precision": precision}
        read |= {"baseline": args.baseline, "baseline_read": facts_of(specs[1])} if args.baseline else {}
        write_json(Path(args.json), {"model": args.model} | _json(results, sets) | read | _adapter_fact(args))
    _say_next(args, sets)


def _say_next(args: argparse.Namespace, sets: Sets) -> None:
    """Writes the command that shows results of the same model on the first set that can be searched."""
    searched = [path for path, data in sets.items() if isinstance(data, RetrievalSet)]
    where = store_words(args, args.collection) if args.collection else ["--data", *searched[:1]]
    if searched:
        compare = ["--compare", args.baseline] if args.baseline else []
        say_next(*searches(args, args.query_adapter), *compare, *where)


def _warn_of_few(results: list[SetResult]) -> None:
    for result in results:
        if result.count < FEW_QUERIES:
            of = f"only {result.count} {result.unit}" + (f" in {result.data.name}" if len(results) > 1 else "")
            say(f"{of}: with fewer than {FEW_QUERIES}, only a large difference says something")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        "python -m trainer.evaluate",
        "Measures a model on retrieval sets and scored pairs, and its difference from a baseline with an interval.",
        "python -m trainer.evaluate --model runs/mine/final --baseline MODEL --data shards",
    )
    add_either_model(parser, "model folder or hub id")
    parser.add_argument("--baseline", metavar="M", help="model to compare with, e.g. the one before training")
    add_adapter(parser)
    sets = parser.add_argument_group("sets")
    text = "retrieval sets, shard folders with an eval split, files of scored pairs; several become one table"
    sets.add_argument("--data", metavar="SET", nargs="+", help=text)
    text = f"{KNOWN}; of scored pairs {KNOWN_OF_PAIRS} (default: nDCG@10 MRR@10 MAP recall@1 recall@10 recall@100)"
    parser.add_argument("--metrics", metavar="NAME", nargs="+", default=[], help=text)
    text = "sizes of embeddings to measure as well (Matryoshka): their first numbers, normalised again"
    parser.add_argument("--dims", type=int, metavar="N", nargs="+", default=[], help=text)
    text = "measure search among vectors of 8 or 1 bits per number as well, rescored and not"
    parser.add_argument("--quantised", choices=QUANTISED, nargs="+", default=[], help=text)
    text = "measure each category too: the values of this metadata field of queries, documents or scored pairs"
    sets.add_argument("--by", metavar="FIELD", help=text)
    text = "refuse a set with empty texts, or with judgements of missing queries or documents (default: report them)"
    sets.add_argument("--strict", action="store_true", help=text)
    text = "do not retrieve the document with the query's own id, as BEIR does (ArguAna)"
    sets.add_argument("--ignore-identical-ids", action="store_true", help=text)
    sets.add_argument("--pairs", type=Path, metavar="FILE", help="pairs that name the chunks of --collection")
    parser.add_argument("--json", metavar="FILE", help="write the result here as well")
    add_store(parser, required=False)
    add_as_stated(parser, "--baseline")
    add_model(parser)
    add_precision(parser)
    return guarded_ranks(lambda: run(with_homes(parser.parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())
