"""Search with a model: python -m trainer.search --model M (--collection … | --data SET) "query" [--compare BASE]."""

import argparse
import sys
from dataclasses import asdict

from data_prep.common.console import say
from data_prep.common.errors import BadInput
from data_prep.common.files import check
from data_prep.common.parser import Parser
from data_prep.common.paths import with_homes
from data_prep.reading.retrieval_sets import RetrievalSet, load_set
from data_prep.stores.base import Collection
from data_prep.stores.flags import add_store, store_flags, store_of, where_of
from data_prep.stores.open import open_collection
from trainer.distributed.launcher_claims import world_size
from trainer.engine.join import joined
from trainer.engine.leaving import guarded_ranks
from trainer.inference.flags import add_as_stated, add_model, add_precision, models_of
from trainer.inference.reading import describe
from trainer.inference.searching import in_memory, in_store, over_collection
from trainer.inference.store_record import FINGERPRINT
from trainer.inference.text_encoder import TextEncoder
from trainer.query_side.encoder import AdaptedEncoder, check_collection
from trainer.query_side.endpoint_encoder import EndpointEncoder
from trainer.query_side.flags import add_adapter, add_either_model, closed_model
from trainer.reporting.hits import show
from trainer.run_dir.verdict import unchanged


def run(args: argparse.Namespace) -> None:
    if args.top < 1:
        raise BadInput(f"--top {args.top}: must be 1 or more")
    if (args.data is None) == (args.collection is None):
        raise BadInput("name what is searched: --collection NAME of a store, or --data SET; one of them")
    if args.data is not None:
        check(store_flags(args))
    elif world_size() > 1:
        raise BadInput(f"--collection with {world_size()} ranks: a store is searched by one process; start one")
    if closed := closed_model(args, args.query_adapter):
        return _search_closed(args, closed)
    data = None if args.data is None else load_set(args.data)
    models = dict(zip(("tuned", "base") if args.compare else ("",), models_of(args.model, args.compare, args)))
    encoders = {side: TextEncoder(model) for side, model in reversed(models.items())}
    if args.query_adapter is not None:
        side = next(iter(models))
        encoders[side] = AdaptedEncoder(models[side], args.query_adapter)
    with joined(args.device, args.precision) as runtime:
        for encoder in encoders.values():
            encoder.runtime = runtime
        _search(args, encoders, data, runtime.is_main)


def _search_closed(args: argparse.Namespace, encoder: EndpointEncoder) -> None:
    """Searches a store that holds the vectors of a closed model."""
    wrong = [name for name in ("data", "compare", "as_stated") if getattr(args, name)]
    mend = "embeds texts anew, for which a closed model is not asked; search its --collection"
    check([f"--{name.replace('_', '-')}: {mend}" for name in wrong])
    with open_collection(store_of(args)) as collection:
        check_collection(encoder, collection)
        hits = in_store(encoder, collection, where_of(args))(args.query, args.top)
    for query, found in zip(args.query, hits):
        show(query, {encoder.name: found})


def _search(
    args: argparse.Namespace, encoders: dict[str, TextEncoder], data: RetrievalSet | None, reports: bool
) -> None:
    """Collective. reports: this rank prints the results."""
    if reports and args.as_stated and not args.compare:
        say("--as-stated changes nothing: there is no --compare")
    head = describe({side: encoder.spec for side, encoder in encoders.items()}) if args.compare else []
    head += unchanged(args.model, args.compare) if args.compare else []
    hits = {}
    if data is not None:
        for note in data.flaws if reports else ():
            say(note)
        for side, encoder in encoders.items():
            if isinstance(encoder, AdaptedEncoder):
                encoder.cut_documents()
            hits[side] = in_memory(encoder, data.doc_ids, data.doc_texts)(args.query, args.top)
    else:
        config, where = store_of(args), where_of(args)
        with open_collection(config) as collection:
            for side, encoder in encoders.items():
                if isinstance(encoder, AdaptedEncoder):
                    check_collection(encoder, collection)
                hits[side] = over_collection(encoder, collection, where)(args.query, args.top)
                head += _read_otherwise(encoder, collection) if args.compare else []
    for i, query in enumerate(args.query) if reports else ():
        show(query, {f"{side} {encoders[side].config.path}".strip(): hits[side][i] for side in encoders}, head)


def _read_otherwise(encoder: TextEncoder, collection: Collection) -> list[str]:
    """Returns a line if the collection holds a model's vectors of documents that were read in another way."""
    facts, rules = collection.about, asdict(encoder.spec.rules)
    if FINGERPRINT not in facts or facts[FINGERPRINT] != encoder.fingerprint:  # the second reads all weights
        return []
    recorded = {name: facts.get(f"embedfleet_{name}") for name in ("passage_prompt", "passage_max_len")}
    unlike = [f"{name} {value!r}" for name, value in recorded.items() if value not in (None, rules[name])]
    of = f"read unlike: {collection.name} holds the documents of {encoder.config.path}"
    return [f"{of} as read with {' and '.join(unlike)}"] if unlike else []


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        "python -m trainer.search",
        "Prints the top results of queries with their cosine similarity, of one model or of two side by side.",
        'python -m trainer.search "how do pods get an address" --model tuned/final --compare MODEL --data k8s_docs',
    )
    parser.add_argument("query", nargs="+", metavar="QUERY", help="text to search for")
    add_either_model(parser, "model folder or hub id")
    parser.add_argument("--compare", metavar="BASE", help="another model, such as the one before training")
    add_adapter(parser)
    parser.add_argument("--top", type=int, default=3, metavar="K", help="results of each query (default 3)")
    parser.add_argument("--data", metavar="SET", help="retrieval set, or shard folder with an eval split")
    add_store(parser, required=False)
    add_as_stated(parser, "--compare")
    add_model(parser)
    add_precision(parser)
    return guarded_ranks(lambda: run(with_homes(parser.parse_args(argv), texts=("query",))))


if __name__ == "__main__":
    sys.exit(main())
