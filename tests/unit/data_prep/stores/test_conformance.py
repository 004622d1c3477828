"""Promises of a store: every store here and the one in docs/how_to/store_plugins.md keep them; faults break them."""

import importlib.util
import re
import sys
from dataclasses import replace

import pytest

from data_prep.common.errors import BadInput
from data_prep.stores import registry
from data_prep.stores.base import Store, StoreConfig
from data_prep.stores.conformance.__main__ import main
from data_prep.stores.conformance.checks import CHECKS
from data_prep.stores.conformance.memory import read_many
from data_prep.stores.conformance.place import Broken, Place
from data_prep.stores.open import open_store
from tests.launching import ROOT
from tests.postgres import postgres_server
from tests.servers import QdrantProtocol, answering, chroma_server

# the local mode of Qdrant writes each point to the disk by itself, 30 ms each
SLOW = {("qdrant folder", "writing_many")}
KINDS = ("chroma folder", "chroma server", "qdrant folder", "qdrant server", "pgvector", "sqlite")
MODULE = "embedfleet_test_sqlite_store"


def example_code() -> str:
    text = (ROOT / "docs/how_to/store_plugins.md").read_text(encoding="utf-8")
    return re.search(r"```python\n(.*?)```", text, re.S)[1]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The store of the documentation as an importable module."""
    file = tmp_path_factory.mktemp("example") / f"{MODULE}.py"
    file.write_text(example_code(), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(MODULE, file)
    module = sys.modules[MODULE] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[MODULE]


@pytest.fixture(scope="module", params=KINDS)
def place(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    if request.param in ("chroma folder", "qdrant folder"):
        yield Place(StoreConfig(request.param.split()[0], "docs", path=folder))
    elif request.param == "chroma server":
        with chroma_server(folder) as (port, _):
            yield Place(StoreConfig("chroma", "docs", host="127.0.0.1", port=port))
    elif request.param == "qdrant server":
        with answering(QdrantProtocol()) as port:
            yield Place(StoreConfig("qdrant", "docs", url=f"http://127.0.0.1:{port}"))
    elif request.param == "pgvector":
        with postgres_server() as url:
            yield Place(StoreConfig("pgvector", "docs", url=url))
    else:
        request.getfixturevalue("example")
        yield Place(StoreConfig(f"{MODULE}:SqliteStore", "docs", path=folder))


@pytest.mark.parametrize("check", CHECKS)
def test_a_promise_is_kept(place, check, request):
    kind = request.node.callspec.params["place"]
    if (kind, check) in SLOW:
        pytest.skip(f"{check} takes half a minute in a {kind}")
    CHECKS[check](place)
    place.clean()
    with place.store() as store:
        assert store.names() == []


def test_the_example_is_a_hundred_lines():
    assert len(example_code().splitlines()) <= 100


def by_offset(right):
    """Pages by offset, so that a deletion moves the next ones."""

    def chunks(self, where=None, page=1000, embeddings=False):
        offset = 0
        while rows := self.rows(where, "order by id limit ? offset ?", (page, offset)):
            yield from [sys.modules[MODULE]._chunk(row, embeddings) for row in rows]
            offset += page

    return chunks


def adding(right):
    """An upsert that keeps the old metadata of a chunk."""

    def upsert(self, chunks):
        old = self.stored([one.id for one in chunks])
        kept = {name: one.metadata for name, one in old.items()}
        right(self, [replace(one, metadata={**kept.get(one.id, {}), **one.metadata}) for one in chunks])

    return upsert


def changing(change):
    """Chunks that are read with a change."""
    return lambda right: lambda self, *argv, **options: map(change, right(self, *argv, **options))


def halved(chunk):
    vector = chunk.embedding
    return replace(chunk, embedding=None if vector is None else vector.astype("f2").astype("f4"))


def floats(chunk):
    fields = {key: float(value) if key == "one" else value for key, value in chunk.metadata.items()}
    return replace(chunk, metadata=fields)


# fault: the method, what makes the faulty one of the right one, the check that finds it
FAULTS = {
    "reads everything at once": (
        "SqliteCollection.chunks",
        lambda right: lambda self, where=None, page=0, embeddings=False: iter([*right(self, where, 1000, embeddings)]),
        "one_page_at_a_time",
    ),
    "pages by offset": ("SqliteCollection.chunks", by_offset, "deletions_while_reading"),
    "halves the numbers": ("SqliteCollection.chunks", changing(halved), "embeddings"),
    "makes floats of whole numbers": ("SqliteCollection.chunks", changing(floats), "values"),
    "counts too few": (
        "SqliteCollection.count",
        lambda right: lambda self, where=None: right(self, where) - 1,
        "reading",
    ),
    "counts without the filter": (
        "SqliteCollection.count",
        lambda right: lambda self, where=None: right(self, None),
        "filters",
    ),
    "takes any filter": ("SqliteCollection.native_filter", lambda right: lambda self, where: None, "filters"),
    "adds to the old metadata": ("SqliteCollection.upsert", adding, "writing"),
    "writes once only": (
        "SqliteCollection.upsert",
        lambda right: lambda self, chunks: None if self.count() else right(self, chunks),
        "durability",
    ),
    "takes no more than a page": (
        "SqliteCollection.upsert",
        lambda right: lambda self, chunks: right(self, chunks[:1000]),
        "writing_many",
    ),
    "returns every chunk": (
        "SqliteCollection.stored",
        lambda right: lambda self, ids: {one.id: one for one in self.chunks()},
        "looking_up",
    ),
    "removes nothing": ("SqliteCollection.remove", lambda right: lambda self, ids: None, "removing"),
    "replaces the description": (
        "SqliteCollection.describe",
        lambda right: lambda self, about: right(self, {"made": "", **about}),
        "description",
    ),
    "searches backwards": (
        "SqliteCollection.nearest",
        lambda right: lambda self, *argv: [hits[::-1] for hits in right(self, *argv)],
        "searching",
    ),
    "ignores the filter": (
        "SqliteCollection.nearest",
        lambda right: lambda self, vectors, k, native: right(self, vectors, k, None),
        "searching_a_part",
    ),
    "compares by cosine always": (
        "SqliteCollection.about",
        lambda right: property(lambda self: {**right.fget(self), "cosine": 1}),
        "searching_by_inner_product",
    ),
    "makes every collection of one size": (
        "SqliteStore.create",
        lambda right: lambda self, name, size, *argv, **options: right(self, name, 16, *argv, **options),
        "a_collection_like_another",
    ),
    "keeps deleted collections": ("SqliteStore.delete", lambda right: lambda self, name: None, "deleted_collections"),
    "takes a name twice": (
        "SqliteStore.create",
        lambda right: lambda self, name, *argv: right(self, name if name not in self.names() else name + "b", *argv),
        "new_collections",
    ),
    "does not list what is there": (
        "SqliteStore.no_collection",
        lambda right: lambda self, name, counts: BadInput(f"{name} is missing"),
        "a_missing_collection",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, example, tmp_path, monkeypatch):
    where, make, check = FAULTS[fault]
    kind, method = where.split(".")
    CHECKS[check](Place(StoreConfig(f"{MODULE}:SqliteStore", "docs", path=tmp_path / "right")))
    target = getattr(example, kind)
    monkeypatch.setattr(target, method, make(getattr(target, method)))
    with pytest.raises(Broken):
        CHECKS[check](Place(StoreConfig(f"{MODULE}:SqliteStore", "docs", path=tmp_path / "wrong")))


def test_every_check_finds_a_fault():
    found = {check for _, _, check in FAULTS.values()}
    assert {*CHECKS} - found <= {"aliases"}, "which the example has none of: test_pgvector"


def test_the_command(example, tmp_path, capsys):
    flags = ["--store", f"{MODULE}:SqliteStore", "--path", str(tmp_path)]
    assert main([*flags, "--only", "new_collections", "values", "--chunks", "50"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^kept +(\w+)", out, re.M) == ["new_collections", "values", "memory"]
    assert "all kept" in out
    assert main([*flags, "--only", "readin"]) == 2
    assert "--only readin: no such check. Did you mean 'reading'?" in capsys.readouterr().err
    example.SqliteCollection.count, right = lambda self, where=None: 1, example.SqliteCollection.count
    try:
        assert main([*flags, "--only", "reading"]) == 1
    finally:
        example.SqliteCollection.count = right
    assert "BROKEN  reading: Broken: count() is 1 of 60" in capsys.readouterr().out
    with open_store(StoreConfig(flags[1], "docs", path=tmp_path)) as store:
        assert store.names() == [], "collections of a broken check are deleted too"


def test_memory_that_grows_is_found(example, tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.stores.conformance.memory.LIMIT", 0)
    with pytest.raises(Broken, match="memory grew by .* while 2,000 chunks were read"):
        read_many(Place(StoreConfig(f"{MODULE}:SqliteStore", "docs", path=tmp_path)), 2000)


def register(folder, *lines: str) -> None:
    """An installed package with entry points."""
    info = folder / f"plug{len(lines)}{folder.name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plug-{folder.name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[embedfleet.stores]", *lines]) + "\n")


def test_a_plug_in_is_found_by_its_entry_point(example, tmp_path, monkeypatch):
    register(
        tmp_path / "a", f"sqlite = {MODULE}:SqliteStore", "gone = no_such_module:Store", f"other = {MODULE}:_chunk"
    )
    register(tmp_path / "b", f"twice = {MODULE}:SqliteStore", "chroma = no_such_module:Store")
    register(tmp_path / "c", f"twice = {MODULE}:SqliteCollection")
    for folder in "abc":
        monkeypatch.syspath_prepend(str(tmp_path / folder))
    registry.load.cache_clear()
    config = StoreConfig("sqlite", "docs", path=tmp_path / "store")
    assert config.problems() == []
    with open_store(config, create=True) as store:
        assert isinstance(store, Store)
    assert registry.kinds() == ["chroma", "qdrant", "pgvector", "gone", "other", "sqlite", "twice"]
    for kind, problem in {
        "sqlit": "must be one of chroma, qdrant, pgvector, gone, .*mean 'sqlite'",
        "gone": r"\(no_such_module:Store of plug-a 1.0\): cannot be imported: No module named 'no_such_module'",
        "other": "is no subclass of data_prep.stores.base.Store",
        "twice": "is registered more than once: .* of plug-b 1.0, .* of plug-c 1.0|.* of plug-c 1.0, .* of plug-b 1.0",
        f"{MODULE}:Nothing": "cannot be imported: .*Nothing",
    }.items():
        (found,) = StoreConfig(kind, "docs", path=tmp_path).problems()
        assert re.search(f"--store {kind}.*{problem}", found), found
    assert StoreConfig("chroma", "docs", path=tmp_path).problems() == [], "this package's own names are its own"
    registry.load.cache_clear()
