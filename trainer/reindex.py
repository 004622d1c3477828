"""A collection embedded anew: python -m trainer.reindex --model M --store … --collection SRC --target NEW.

Alone, or on the ranks of torchrun and the like: rank 0 reads, all ranks embed, and those of a server write too.
"""

import argparse
import sys
from pathlib import Path

from data_prep.common.console import say, say_next
from data_prep.common.files import check
from data_prep.common.parser import Parser
from data_prep.common.paths import with_homes
from data_prep.stores.flags import add_store, store_of, store_words, where_of
from trainer.engine.join import joined
from trainer.engine.leaving import guarded_ranks
from trainer.inference.flags import add_model, add_precision, models_of
from trainer.inference.text_encoder import TextEncoder
from trainer.reindexing.reindex import RECALL, reindex, roll_back
from trainer.run_dir.verdict import doubt

NAMED = {
    "model": "the model to embed with",
    "collection": "the collection to read",
    "target": "the new collection (or --into-vector: a new vector of --collection)",
    "alias": "the alias to point back",
}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        "python -m trainer.reindex",
        "Embeds a collection with a model into a new collection, or a new vector, of the same store.",
        "python -m trainer.reindex --model tuned/final --path chroma --collection stdlib --target stdlib-tuned",
    )
    parser.add_argument("--model", metavar="M", help="model folder or hub id")
    parser.add_argument("--target", metavar="NEW", help="new collection")
    text = "in place of --target: each chunk of --collection gets a vector of this name too (Qdrant 1.18 and later)"
    parser.add_argument("--into-vector", metavar="NAME", help=text)
    batch = "chunks embedded and written at a time (default 256)"
    parser.add_argument("--batch", type=int, default=256, metavar="N", help=batch)
    dim = "Matryoshka: keep the first D numbers of each embedding (default: all)"
    parser.add_argument("--dim", type=int, metavar="D", help=dim)
    alias = "Qdrant, pgvector (a view): point this alias to the target at the end, once that has been checked"
    parser.add_argument("--alias", metavar="NAME", help=alias)
    recall = f"share of an exact search's hits that the target's search must find before the alias moves ({RECALL:g})"
    parser.add_argument("--recall", type=float, default=RECALL, metavar="R", help=recall)
    watch = "go on copying what is written and deleted meanwhile until this file exists"
    parser.add_argument("--watch", type=Path, metavar="FILE", help=watch)
    text = "delete and overwrite what others wrote to --target since it was filled: it becomes equal to --collection"
    parser.add_argument("--overwrite-target", action="store_true", help=text)
    text = "point --alias back to the collection that it pointed to before; needs no other flag than the store's"
    parser.add_argument("--rollback", action="store_true", help=text)
    add_store(parser, required=False)
    add_model(parser)
    add_precision(parser)
    return guarded_ranks(lambda: run(with_homes(parser.parse_args(argv))))


def run(args: argparse.Namespace) -> None:
    needed = ("alias",) if args.rollback else ("model", "collection", *(() if args.into_vector else ("target",)))
    check([f"--{name}: is missing; it names {NAMED[name]}" for name in needed if getattr(args, name) is None])
    if args.rollback:
        args.collection = args.collection or args.alias
        with joined(args.device) as runtime:
            runtime.world.on_first(lambda: roll_back(store_of(args), args.alias))
        return
    config, where = store_of(args), where_of(args)
    (model,) = models_of(args.model, None, args)
    encoder = TextEncoder(model, args.device, args.dim, args.precision)
    options = {"batch": args.batch, "alias": args.alias, "recall": args.recall, "watch": args.watch}
    options |= {"into_vector": args.into_vector, "overwrite": args.overwrite_target}
    with joined(args.device, args.precision) as runtime:
        if runtime.is_main and (line := doubt(args.model)):
            say(line)
        encoder.runtime = runtime
        reindex(config, args.target, encoder, where=where, **options)
        if runtime.is_main and args.target:
            search = ["python", "-m", "trainer.search", "QUERY", "--model", args.model]
            say_next(*search, *store_words(args, args.target))


if __name__ == "__main__":
    sys.exit(main())
