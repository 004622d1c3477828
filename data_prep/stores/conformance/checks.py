"""The promises of data_prep/stores/base.py, one check each. A check raises Broken, or what the store raises."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any

import numpy as np

from data_prep.common.errors import Failed
from data_prep.stores.base import PAGE, Chunk, Collection
from data_prep.stores.conformance.place import (
    COUNT,
    SIZE,
    Place,
    best,
    expect,
    expect_refusal,
    expect_same,
    plain,
    some_chunks,
    vector,
)

RECALL, RECALL_BY_LENGTH = 0.99, 0.9  # of an exact search; vectors of unlike lengths are harder for graphs
ALIKE = 1e-5  # greatest difference of a number of a vector that was written and read


def new_collections(place: Place) -> None:
    """A new collection is empty and listed, and its name is then taken."""
    name = place.name()
    with place.store() as store:
        expect(store.name_problem(name) is None, f"{name}: {store.name_problem(name)}")
        made = store.create(name, SIZE, {"made": "here"})
        expect(name in store.names(), "names() lacks it")
        expect(store.names() == sorted(store.names()), "names() is not sorted")
        expect(made.count() == 0, f"count() is {made.count()}")
        expect(list(made.chunks()) == [], "chunks() yields some")
        expect(made.about.get("made") == "here", f"about is {made.about}")
        expect_refusal("create() of a name that is taken", lambda: store.create(name, SIZE, {}), name)


def deleted_collections(place: Place) -> None:
    """A deleted collection is gone, and its name can be used again."""
    name = place.name()
    with place.store() as store:
        store.create(name, SIZE, {}).upsert(some_chunks(3))
        store.delete(name)
        expect(name not in store.names(), "names() has it still")
        expect(store.create(name, SIZE, {}).count() == 0, "its chunks are there again")


def a_missing_collection(place: Place) -> None:
    """A collection that is missing is BadInput that lists those there."""
    with place.filled() as collection:
        name, store = collection.name, collection.store
        expect_refusal("open() of a missing collection", lambda: store.open(name + "x"), name + "x", f"{name} (")


def reading(place: Place) -> None:
    """Every chunk is read once, whatever the page, and a second time in the same order."""
    with place.filled() as collection:
        expect(collection.count() == COUNT, f"count() is {collection.count()} of {COUNT}")
        orders = []
        for page in (1, 7, COUNT - 1, COUNT, COUNT + 1, 1000):
            read = list(collection.chunks(page=page))
            expect_same(read, some_chunks())
            expect(all(one.embedding is None for one in read), "embeddings are read unasked")
            orders.append([one.id for one in read])
        expect(all(order == orders[0] for order in orders), "the order differs from page size to page size")


def one_page_at_a_time(place: Place) -> None:
    """Reading holds no more chunks than a few pages."""
    with place.filled() as collection:
        page, most, before = 5, 0, _held()
        for _ in islice(collection.chunks(page=page), 0, None, 2 * page):
            most = max(most, _held() - before)
        expect(most <= 4 * page, f"{most} chunks are in memory at a time with pages of {page}")


def _held() -> int:
    return sum(isinstance(one, Chunk) for one in gc.get_objects())


def values(place: Place) -> None:
    """Texts of every script and length, and metadata of every type, are read as they were written."""
    metadata: list[dict[str, Any]] = [
        {},
        {"text_a": "a\n\t\"b\" 'c' %s {d} \\", "空": "日本語 🙂"},
        {"whole": 2**53, "negative": -7, "zero": 0},
        {"share": 0.1, "small": 1e-300, "large": 1.5e12, "whole_float": 2.0},
        {"yes": True, "no": False, "one": 1},
    ]
    texts = ["plain", "Zeilen\nund\tTabs \"'` %s %% {} \\n", "日本語 Ελληνικά עברית 🙂", "long " * 20_000, "  spaces  "]
    written = [Chunk(str(i), text, fields, vector(i)) for i, (text, fields) in enumerate(zip(texts, metadata))]
    with place.filled(written) as collection:
        expect_same(list(collection.chunks()), written)


def embeddings(place: Place) -> None:
    """The store's own vectors are read along: (d,) float32 in the direction that was written."""
    with place.filled() as collection:
        own = {one.id: one.embedding for one in some_chunks()}
        expect(collection.size == SIZE, f"size is {collection.size}")
        read = list(collection.chunks(page=10, embeddings=True))
        expect_same(read, some_chunks())
        _expect_vectors(read, own)


def _expect_vectors(read: Sequence[Chunk], own: dict[str, np.ndarray]) -> None:
    for one in read:
        shaped = isinstance(one.embedding, np.ndarray) and one.embedding.shape == (SIZE,)
        expect(shaped and one.embedding.dtype == np.float32, f"{one.id}: the embedding is no (d,) float32")
        off = float(np.abs(one.embedding - own[one.id]).max())
        expect(off <= ALIKE, f"{one.id}: a number of its embedding is off by {off:.2g}")


def filters(place: Place) -> None:
    """{field: value} chooses chunks, the same for count() and chunks(); what is no filter is BadInput."""
    with place.filled() as collection:
        for where in ({"kind": "b"}, {"number": 7}, {"good": True}, {"kind": "none"}):
            ((key, value),) = where.items()
            wanted = [one for one in some_chunks() if one.metadata[key] == value]
            expect(collection.count(where) == len(wanted), f"{where}: count() is {collection.count(where)}")
            expect_same(list(collection.chunks(where, page=4)), wanted)
        wrong = {"kind": {"embedfleet": [{}]}}
        expect_refusal("count() with what is no filter", lambda: collection.count(wrong), "--where")
        expect_refusal("chunks() with what is no filter", lambda: list(collection.chunks(wrong)), "--where")


def writing(place: Place) -> None:
    """A chunk takes the place of one of the same id, whose other fields are gone. Writing twice changes nothing."""
    with place.filled() as collection:
        changed = replace(some_chunks()[4], text="Another text.", metadata={"kind": "c"}, embedding=vector(999))
        rest = [one for one in some_chunks() if one.id != changed.id]
        for _ in range(2):
            collection.upsert([changed])
            expect(collection.count() == COUNT, f"count() is {collection.count()}, not {COUNT}")
            expect_same(list(collection.chunks()), [changed, *rest])
        read = [one for one in collection.chunks(embeddings=True) if one.id == changed.id]
        _expect_vectors(read, {changed.id: changed.embedding})
        collection.upsert([])
        expect(collection.count() == COUNT, "upsert([]) changes something")


def writing_many(place: Place) -> None:
    """One call writes as many chunks as a caller likes."""
    many = [replace(one, id=str(i)) for i, one in enumerate(some_chunks() * (PAGE // COUNT + 1))]
    with place.filled(many) as collection:
        expect(collection.count() == len(many), f"{len(many)} chunks at once: count() is {collection.count()}")


def durability(place: Place) -> None:
    """Another process sees everything that upsert() and remove() have returned from."""
    with place.filled() as collection:
        collection.upsert([replace(some_chunks()[0], text="written last")])
        collection.remove([some_chunks()[1].id])
    with place.open(collection.name) as again:
        read = {one.id: one.text for one in again.chunks()}
    expect(read.get(some_chunks()[0].id) == "written last", "the chunk that was written last is not there")
    expect(some_chunks()[1].id not in read, "the chunk that was removed is there")


def looking_up(place: Place) -> None:
    """stored() returns the chunks of these ids that exist."""
    with place.filled() as collection:
        wanted = some_chunks()[:3]
        found = collection.stored([*(one.id for one in wanted), "987654"])
        expect(found == plain(wanted), f"stored() returns {found}")
        expect(collection.stored(["987654"]) == {}, "stored() returns a chunk for an id that does not exist")
        expect(collection.stored([]) == {}, "stored([]) is not empty")


def removing(place: Place) -> None:
    """remove() deletes the chunks of these ids and no other."""
    with place.filled() as collection:
        gone = [one.id for one in some_chunks()[:5]]
        collection.remove([*gone, "987654"])
        collection.remove([])
        expect_same(list(collection.chunks()), some_chunks()[5:])
        hits = collection.query(some_chunks()[0].embedding[None], 10)[0]
        expect(not {one.id for one in hits} & {*gone}, "query() finds a chunk that was removed")


def deletions_while_reading(place: Place) -> None:
    """A deletion behind the reader hides no other chunk: all are read once, or Failed says that it would."""
    with place.filled() as collection:
        chunks = collection.chunks(page=10)
        first = list(islice(chunks, 10))
        collection.remove([one.id for one in first[:3]])
        try:
            read = [*first, *chunks]
        except Failed:
            return
        expect_same(read, some_chunks())


def description(place: Place) -> None:
    """describe() sets entries of `about` for good; the others and the chunks stay."""
    with place.filled() as collection:
        collection.describe({"number": 4, "text": "ü \"'", "share": 0.5})
        wanted = {"made": "here", "number": 4, "text": "ü \"'", "share": 0.5}
        _expect_about(collection.about, wanted)
        expect(collection.count() == COUNT, "the chunks are gone")
    with place.open(collection.name) as again:
        _expect_about(again.about, wanted)


def _expect_about(about: dict[str, Any], wanted: dict[str, Any]) -> None:
    differing = {key: about.get(key) for key, value in wanted.items() if about.get(key) != value}
    expect(not differing, f"about has {differing}, was set to {wanted}")


def searching(place: Place) -> None:
    """query() finds the nearest chunks by cosine, best first, with their vectors."""
    with place.filled() as collection:
        _expect_nearest(collection, some_chunks(), None, RECALL)
        asked = vector(5000)[None]
        everything = collection.query(asked, COUNT + 10)[0]
        expect(len(everything) == COUNT, f"asked for more than there are, query() finds {len(everything)} of {COUNT}")
        _expect_vectors(everything, {one.id: one.embedding for one in some_chunks()})
        wrong = np.ones((1, SIZE + 1), np.float32)
        refused = f"query() with {SIZE + 1} numbers", lambda: collection.query(wrong, 3)
        expect_refusal(*refused, str(SIZE), str(SIZE + 1))


def searching_a_part(place: Place) -> None:
    """query() with a filter finds the nearest among the chunks that match."""
    with place.filled() as collection:
        part = [one for one in some_chunks() if one.metadata["kind"] == "b"]
        _expect_nearest(collection, part, {"kind": "b"}, RECALL)


def searching_by_inner_product(place: Place) -> None:
    """In a collection that is not compared by cosine, longer vectors rank higher."""
    chunks = [replace(one, embedding=one.embedding * (1 + int(one.id) % 5)) for one in some_chunks()]
    with place.filled(chunks, cosine=False) as collection:
        _expect_nearest(collection, chunks, None, RECALL_BY_LENGTH)


def _expect_nearest(collection: Collection, among: Sequence[Chunk], where: dict | None, least: float) -> None:
    k, asked = 10, np.array([vector(1000 + i) for i in range(130)])
    answers = collection.query(asked, k, where)
    expect(len(answers) == len(asked), f"{len(asked)} vectors get {len(answers)} answers")
    found, own = 0, {one.id: one.embedding for one in among}
    for query, hits in zip(asked, answers):
        ids = [one.id for one in hits]
        expect(len(ids) == len({*ids}) == k, f"asked for {k}, query() finds {len({*ids})}")
        expect({*ids} <= {*own}, "query() finds chunks that do not match the filter")
        scores = [float(own[one] @ query) for one in ids]
        expect(scores == sorted(scores, reverse=True) or _nearly(scores), "the hits are not best first")
        found += len({*ids} & {*best(query, among, k)})
    recall = found / (k * len(asked))
    expect(recall >= least, f"query() finds {recall:.3f} of what an exact search finds; at least {least}")


def _nearly(scores: list[float]) -> bool:
    return all(first >= second - ALIKE for first, second in pairwise(scores))


def a_collection_like_another(place: Place) -> None:
    """create(like=…) makes a collection of the same form for vectors of another size, and `layout` opens it."""
    name = place.name()
    with place.filled() as source:
        store = source.store
        made = store.create(name, SIZE // 2, {}, like=source)
        made.upsert([replace(one, embedding=one.embedding[: SIZE // 2]) for one in source.chunks(embeddings=True)])
        made.finish(like=source)
        made.finish(like=source)
        again = store.open(name, **source.layout)
        expect_same(list(again.chunks()), some_chunks())
        expect(again.size == SIZE // 2, f"size is {again.size}, not {SIZE // 2}")
        expect(again.layout == source.layout, f"layout is {again.layout}, the other's is {source.layout}")


def aliases(place: Place) -> None:
    """A store with aliases opens them like collections, and moves them in one step; deleting takes them along."""
    names = [place.name() for _ in range(3)]
    alias, one, other = names
    with place.store() as store:
        if store.aliases() is None:
            return
        store.create(one, SIZE, {}).upsert(some_chunks(3))
        store.create(other, SIZE, {}).upsert(some_chunks(5))
        for target, count in ((one, 3), (other, 5), (one, 3)):
            store.swap_alias(alias, target)
            expect(store.aliases().get(alias) == target, f"aliases() is {store.aliases()}")
            expect(alias not in store.names(), "names() has the alias")
            expect(store.open(alias).count() == count, "open() of the alias opens another collection")
        expect_refusal("create() of an alias' name", lambda: store.create(alias, SIZE, {}), alias)
        store.delete(one)
        expect(alias not in store.aliases(), "the alias of a deleted collection is there")


CHECKS: dict[str, Callable[[Place], None]] = {
    check.__name__: check
    for check in (
        new_collections,
        deleted_collections,
        a_missing_collection,
        reading,
        one_page_at_a_time,
        values,
        embeddings,
        filters,
        writing,
        writing_many,
        durability,
        looking_up,
        removing,
        deletions_while_reading,
        description,
        searching,
        searching_a_part,
        searching_by_inner_product,
        a_collection_like_another,
        aliases,
    )
}
