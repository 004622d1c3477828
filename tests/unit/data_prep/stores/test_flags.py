"""Flags of a store, and the same flags in a command to come."""

import argparse
from dataclasses import asdict

import pytest

from data_prep.stores.flags import add_store, store_of, store_words


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_store(parser)
    return parser.parse_args(argv)


@pytest.mark.parametrize(
    "argv",
    [
        ("--path", "chroma"),
        ("--host", "db", "--port", "8001", "--ssl", "--tenant", "t", "--database", "d"),
        ("--store", "qdrant", "--path", "qdrant", "--text-field", "meta.body", "--vector-name", "small"),
    ],
)
def test_the_words_of_a_store_are_read_as_the_same_store_with_another_collection(argv):
    args = parsed(*argv, "--collection", "docs")
    again = store_of(parsed(*store_words(args, "docs-new")))
    assert asdict(again) == asdict(store_of(args)) | {"collection": "docs-new"}


def test_a_url_is_left_to_the_reader_as_it_may_hold_a_password():
    args = parsed("--store", "pgvector", "--url", "postgresql://me:secret@db/x", "--collection", "docs")
    assert store_words(args, "docs") == ["--store", "pgvector", "--url", "URL", "--collection", "docs"]
