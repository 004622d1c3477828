"""The flags that name a collection and the part of it to read."""

import argparse
import json
from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput
from data_prep.common.files import check
from data_prep.stores.base import CHROMA_PORT, FLAGS, HTTPS_PORT, StoreConfig
from data_prep.stores.registry import OWN


def add_store(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds the flags; store_of and where_of read them. required: --collection is."""
    text = "keys come from the environment or .env: CHROMA_TOKEN, QDRANT_API_KEY, PGPASSWORD"
    group = parser.add_argument_group("store", text)
    text = f"{', '.join(OWN)} (default chroma), or a plug-in: docs/how_to/store_plugins.md"
    group.add_argument("--store", default="chroma", metavar="KIND", help=text)
    group.add_argument("--path", type=Path, metavar="DIR", help="folder of embedded Chroma or of Qdrant's local mode")
    group.add_argument("--host", metavar="NAME", help="host of a Chroma server")
    text = f"port of the Chroma server (default {CHROMA_PORT}, or {HTTPS_PORT} with --ssl)"
    group.add_argument("--port", type=int, metavar="N", help=text)
    group.add_argument("--ssl", action="store_true", help="reach the Chroma server by https")
    group.add_argument("--tenant", metavar="NAME", help="tenant of the Chroma server (default: default_tenant)")
    group.add_argument("--database", metavar="NAME", help="database of that tenant (default: default_database)")
    text = "Qdrant server, such as http://localhost:6333 (without a port: https 443, http 6333), or PostgreSQL, "
    text += "such as postgresql://user@host:5432/database"
    group.add_argument("--url", metavar="URL", help=text)
    text = "name of the collection; for PostgreSQL table or schema.table"
    group.add_argument("--collection", required=required, metavar="NAME", help=text)
    text = "Qdrant: payload field with a point's text, or a path to it such as meta.body; PostgreSQL: column of texts"
    group.add_argument("--text-field", metavar="FIELD", help=text)
    text = "Qdrant: name of the vector, where a collection has several; PostgreSQL: column of vectors"
    group.add_argument("--vector-name", metavar="NAME", help=text)
    text = "PostgreSQL: column of ids (default: the primary key)"
    group.add_argument("--key-field", metavar="COLUMN", help=text)
    text = "upgrade a folder of an older version, which cannot be undone (default: read a temporary copy of it)"
    group.add_argument("--upgrade-store", action="store_true", help=text)
    text = (
        "only these chunks: Chroma's filter, such as '{\"kind\": \"function\"}', Qdrant's, such as "
        '\'{"must": [{"key": "year", "range": {"gte": 2020}}]}\', or \'{"sql": "year > 2020"}\'; {"field": value} '
        "works with every store"
    )
    group.add_argument("--where", metavar="JSON", help=text)


def store_flags(args: argparse.Namespace) -> list[str]:
    """Returns a problem for each store flag without --collection, as it would be ignored."""
    given = [name for name in (*FLAGS, "where") if getattr(args, name)]
    return [f"--{name.replace('_', '-')}: needs --collection" for name in given]


def store_of(args: argparse.Namespace) -> StoreConfig:
    """Returns the collection that the flags name. BadInput for flags that contradict each other."""
    config = StoreConfig(args.store, args.collection, **{name: getattr(args, name) for name in FLAGS})
    check(config.problems())
    return config


def store_words(args: argparse.Namespace, collection: str) -> list[str]:
    """Returns the flags that name a collection of the same store in a command to come. A URL may hold a password: the
    word URL stands for it."""
    words = ["--store", args.store]
    for name in FLAGS:
        value = getattr(args, name)
        if value and name != "upgrade_store":
            flag = f"--{name.replace('_', '-')}"
            words += [flag] if value is True else [flag, "URL" if name == "url" else str(value)]
    return [*words, "--collection", collection]


def where_of(args: argparse.Namespace) -> dict[str, Any] | None:
    """Returns the filter of --where as it is. BadInput unless it is a JSON object."""
    if args.where is None:
        return None
    try:
        value = json.loads(args.where)
    except ValueError:
        raise BadInput(f'--where {args.where}: is not JSON; write it like \'{{"kind": "function"}}\'') from None
    if not isinstance(value, dict) or not value:
        raise BadInput(f'--where {args.where}: must be a JSON object such as {{"kind": "function"}}')
    return value
