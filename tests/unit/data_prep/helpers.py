"""Shared by the tests of data_prep: files from rows, and a run of the command line."""

import json
from pathlib import Path

from data_prep.__main__ import main
from data_prep.common.files import sha256_of
from data_prep.records import Record
from data_prep.shards.folder import ShardFolder
from data_prep.stores.base import Chunk, StoreConfig
from data_prep.stores.open import open_collection

PAIR = {"anchor": "What is mould?", "positive": "A fungus that grows on damp walls."}


def write_jsonl(path: Path, rows) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[dict]:
    # not splitlines(): a text may hold a line separator of Unicode
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def run(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def documents(count: int, per: int = 3, module: bool = False) -> list[Record]:
    """`count` documents with `per` questions each; every text distinct."""
    return [
        Record(
            f"question {q} about topic{d}",
            [f"answer {q} on topic{d}, distinct"],
            doc_ids=[f"doc{d}"],
            metadata={"module": f"m{d % 7}"} if module else {},
        )
        for d in range(count)
        for q in range(per)
    ]


def write_records(path: Path, records: list[Record]) -> Path:
    return write_jsonl(path, [record.to_json() for record in records])


def read_chunks(folder: Path, collection: str, **options) -> list[Chunk]:
    """All chunks of an embedded Chroma collection."""
    with open_collection(StoreConfig("chroma", collection, path=folder)) as store:
        return list(store.chunks(**options))


def changed_files(folder: ShardFolder) -> list[str]:
    """Paths of the files whose bytes differ from the manifest's hashes."""
    entries = folder.manifest["files"]
    return [entry["path"] for entry in entries if sha256_of(folder.path / entry["path"]) != entry["sha256"]]
