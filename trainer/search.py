"""What a model finds: python -m trainer.search --model M (--collection … | --data SET) "query" [--compare BASE]."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np

from data_prep.cli import add_store, store_flags, store_of, where_of
from data_prep.output import check
from data_prep.problems import BadInput, guarded
from data_prep.progress import say
from data_prep.retrieval_sets import load_set
from data_prep.stores import Collection, open_collection
from trainer.inference import TextEncoder, add_model, model_of
from trainer.reindex import DIM, FINGERPRINT, STATE, UNFINISHED

PROBED = 8  # chunks embedded again to see whose vectors a collection holds
SAME = 0.99  # cosine: the same model with another length or runtime stays above, other models far below


@dataclass(frozen=True)
class Hit:
    """similarity: cosine of query and chunk, -1 to 1."""

    id: str
    text: str
    similarity: float


Searcher = Callable[[list[str], int], list[list[Hit]]]


def in_memory(encoder: TextEncoder, ids: list[str], texts: list[str]) -> Searcher:
    """Exact search over texts that are embedded now."""
    documents = encoder.passages(texts)

    def search(queries: list[str], k: int) -> list[list[Hit]]:
        vectors = encoder.queries(queries)
        found = []
        for row, vector in zip(vectors @ documents.T, vectors):
            best = np.argsort(-row, kind="stable")[:k]
            found.append([Hit(ids[i], texts[i], _cosine(vector, documents[i])) for i in best])
        return found

    return search


def in_store(encoder: TextEncoder, collection: Collection, where: dict | None) -> Searcher:
    """The store's own search over the vectors that it holds."""

    def search(queries: list[str], k: int) -> list[list[Hit]]:
        vectors = encoder.queries(queries)
        answers = collection.query(vectors, k, where)
        return [
            [Hit(chunk.id, chunk.text, _cosine(vector, chunk.embedding)) for chunk in answer]
            for vector, answer in zip(vectors, answers)
        ]

    return search


def over_collection(encoder: TextEncoder, collection: Collection, where: dict | None) -> Searcher:
    """The store's search where its vectors are this model's; otherwise its texts are embedded here, and that is said.

    Whose they are: reindex recorded the model, or a few chunks are embedded again and compared.
    """
    if collection.about.get(STATE) == UNFINISHED:
        say(f"note: {collection.name} is unfinished: reindex was stopped before its end")
    if holds(encoder, collection):
        return in_store(encoder, collection, where)
    chunks = [(chunk.id, chunk.text) for chunk in collection.chunks(where)]
    if not chunks:
        raise BadInput(f"--collection {collection.name}: no chunk" + (" fits --where" if where else ""))
    say(
        f"{collection.name} holds no vectors of {encoder.config.path}: "
        f"embedding its {len(chunks):,} texts here (python -m trainer.reindex stores them)"
    )
    return in_memory(encoder, *map(list, zip(*chunks)))


def holds(encoder: TextEncoder, collection: Collection) -> bool:
    """Whether the collection's vectors are this model's; sets encoder.dim where only their first numbers are kept."""
    size, about = collection.size, collection.about
    if size is None:
        return False
    if FINGERPRINT in about:
        if about[FINGERPRINT] != encoder.fingerprint:
            return False
        encoder.dim = about[DIM] if about[DIM] < encoder.size else None
        return True
    if size != encoder.size:
        return False
    stored = list(islice(collection.chunks(page=PROBED, embeddings=True), PROBED))
    own = encoder.passages([chunk.text for chunk in stored])
    return bool(stored) and min(_cosine(vector, chunk.embedding) for vector, chunk in zip(own, stored)) >= SAME


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / length if length else 0.0


def show(query: str, sides: dict[str, list[Hit]]) -> None:
    """A table of the hits, one column per model."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", *sides, title=Text(query), expand=True)
    for rank in range(max(len(hits) for hits in sides.values())):
        cells = []
        for hits in sides.values():
            hit = hits[rank] if rank < len(hits) else None
            cells.append(Text(f"{100 * hit.similarity:.1f} %  {hit.id}\n{_line(hit.text)}" if hit else ""))
        table.add_row(str(rank + 1), *cells)
    Console().print(table)


def _line(text: str, most: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def run(args: argparse.Namespace) -> None:
    if args.top < 1:
        raise BadInput(f"--top {args.top}: must be 1 or more")
    if (args.data is None) == (args.collection is None):
        raise BadInput("name what is searched: --collection NAME of a store, or --data SET; one of them")
    if args.data is not None:
        check(store_flags(args))
    paths = {"base": args.compare, "tuned": args.model} if args.compare else {"": args.model}
    encoders = {side: TextEncoder(model_of(path, args), args.device) for side, path in paths.items()}
    found = {}
    if args.data is not None:
        data = load_set(args.data)
        for side, encoder in encoders.items():
            found[side] = in_memory(encoder, data.doc_ids, data.doc_texts)(args.query, args.top)
    else:
        config, where = store_of(args), where_of(args)
        with open_collection(config) as collection:
            for side, encoder in encoders.items():
                found[side] = over_collection(encoder, collection, where)(args.query, args.top)
    for i, query in enumerate(args.query):
        show(query, {f"{side} {encoders[side].config.path}".strip(): found[side][i] for side in encoders})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.search",
        description="The top results of a query with their cosine similarity in per cent; with --compare those of "
        "another model beside them.",
        epilog='example: python -m trainer.search "how do pods get an address" --model tuned/final --compare MODEL '
        "--data k8s_docs",
    )
    parser.add_argument("query", nargs="+", help="one or more")
    parser.add_argument("--model", required=True, help="model folder or hub id")
    parser.add_argument("--compare", metavar="BASE", help="another model, such as the one before training")
    parser.add_argument("--top", type=int, default=3, metavar="K", help="results of each query (default 3)")
    parser.add_argument("--data", metavar="SET", help="retrieval set, or shard folder with an eval split")
    add_store(parser, required=False)
    add_model(parser)
    args = parser.parse_args(argv)
    return guarded(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
