"""A collection embedded anew: python -m trainer.reindex --model M --store … --collection SRC --target NEW."""

import argparse
import sys

from data_prep.common.errors import guarded
from data_prep.common.paths import with_homes
from data_prep.stores.flags import add_store, store_of, where_of
from trainer.inference.flags import add_model, model_of
from trainer.inference.reindexing import reindex
from trainer.inference.text_encoder import TextEncoder


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.reindex",
        description="Embeds a collection with a model into a new collection of the same store; ids, texts and metadata "
        "are kept. Run again, it goes on where it stopped.",
        epilog="example: python -m trainer.reindex --model tuned/final --store chroma --path chroma "
        "--collection stdlib --target stdlib-tuned",
    )
    parser.add_argument("--model", required=True, help="model folder or hub id")
    parser.add_argument("--target", required=True, metavar="NEW", help="the collection that is made")
    batch = "chunks embedded and written at a time (default 256)"
    parser.add_argument("--batch", type=int, default=256, metavar="N", help=batch)
    dim = "Matryoshka: keep the first D numbers of each embedding (default: all)"
    parser.add_argument("--dim", type=int, metavar="D", help=dim)
    alias = "Qdrant, pgvector (a view): point this alias to the target at the end"
    parser.add_argument("--alias", metavar="NAME", help=alias)
    add_store(parser)
    add_model(parser)
    return guarded(lambda: run(with_homes(parser.parse_args(argv))))


def run(args: argparse.Namespace) -> None:
    config, where = store_of(args), where_of(args)
    encoder = TextEncoder(model_of(args.model, args), args.device, args.dim)
    reindex(config, args.target, encoder, batch=args.batch, where=where, alias=args.alias)


if __name__ == "__main__":
    sys.exit(main())
