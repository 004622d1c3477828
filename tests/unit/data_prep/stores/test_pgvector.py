"""Tables of PostgreSQL as people lay them out, on a real server with pgvector."""

import json
from dataclasses import replace

import numpy as np
import pytest

from data_prep.common.errors import BadInput
from data_prep.stores.base import StoreConfig
from data_prep.stores.open import open_collection, open_store
from data_prep.stores.pgvector.store import PgvectorStore
from tests.unit.data_prep.helpers import read_jsonl, run
from tests.unit.data_prep.stores.test_stores import SIZE, chunks

# as the libraries create them
LANGCHAIN = """
    create table {} (id varchar primary key, collection_id uuid, embedding vector(8), document varchar, cmetadata jsonb)
"""
LLAMA_INDEX = """
    create table {} (id bigserial primary key, text varchar not null, metadata_ json, node_id varchar,
        embedding vector(8))
"""
TYPED = """
    create table {} (
        id bigint generated always as identity primary key, body text not null, title varchar(80), year int,
        price numeric(30, 18), tags text[], seen timestamptz default now(), flags jsonb,
        words tsvector generated always as (to_tsvector('simple', body)) stored, embedding vector(8),
        category int references categories (id))
"""


def text_of(chunk) -> str:
    return json.dumps(chunk.embedding.tolist())


def config(url: str, name: str = "docs", **more) -> StoreConfig:
    return StoreConfig("pgvector", name, url=url, **more)


def test_langchains_table(url, database, capsys):
    database.execute(LANGCHAIN.format("docs"))
    for chunk in chunks(3):
        row = [f"c{chunk.id}", "6f2c9f4e-0000-4000-8000-000000000001", text_of(chunk), chunk.text, json.dumps({"n": 1})]
        database.execute("insert into docs values (%s, %s, %s, %s, %s)", row)
    with open_collection(config(url)) as collection:
        assert "the text is the column 'document'" in capsys.readouterr().err
        read = list(collection.chunks(embeddings=True))
        assert [one.id for one in read] == ["c0", "c1", "c2"]
        assert read[0].metadata == {"cmetadata": {"n": 1}, "collection_id": "6f2c9f4e-0000-4000-8000-000000000001"}
        assert collection.count({"collection_id": "6f2c9f4e-0000-4000-8000-000000000001"}) == 3
        assert collection.count({"sql": "cmetadata @> '{\"n\": 1}' and id like '%2'"}) == 1
        assert collection.count({"collection_id": None}) == 0


def test_llamaindexs_table(url, database):
    database.execute(LLAMA_INDEX.format('"data_docs"'))
    for chunk in chunks(4):
        row = [chunk.text, json.dumps({"kind": "a"}), f"n{chunk.id}", text_of(chunk)]
        database.execute("insert into data_docs (text, metadata_, node_id, embedding) values (%s, %s, %s, %s)", row)
    with open_collection(config(url, "data_docs")) as collection:
        assert [one.id for one in collection.chunks(page=2)] == ["1", "2", "3", "4"]
        assert collection.stored(["1", "x", "01"])["1"].metadata["metadata_"] == {"kind": "a"}
    with open_collection(config(url, "data_docs", key_field="node_id")) as collection:
        assert [one.id for one in collection.chunks()] == ["n0", "n1", "n2", "n3"]


def typed(database, url: str = "") -> StoreConfig:
    """A table of columns of many types; two of them are texts."""
    database.execute("create table categories (id int primary key); insert into categories values (1)")
    database.execute(TYPED.format("docs"))
    columns = "body, title, year, price, tags, seen, flags, embedding, category"
    for chunk in chunks(6):
        row = [chunk.text, "T%s {}", 2020 + int(chunk.id), "0.123456789012345678", ["a b", 'c"d'], None, None]
        values = [*row, text_of(chunk), 1]
        database.execute(f"insert into docs ({columns}) values ({', '.join(['%s'] * 9)})", values)
    database.execute("update docs set seen = '2026-11-28 10:00:00.123456+02' where id = 1")
    database.execute("update docs set flags = '{\"x\": [1, null]}' where id = 1")
    return config(url, text_field="body")


def test_columns_of_every_type_are_read_and_written_again(url, database, monkeypatch):
    monkeypatch.setenv("PGTZ", "Asia/Tokyo")  # of this machine; the text of a time is that of every machine
    with open_collection(typed(database, url)) as collection:
        first, second = list(collection.chunks(page=4, embeddings=True))[:2]
        assert first.metadata.keys() == {"title", "year", "price", "tags", "seen", "flags", "category"}, (
            "what PostgreSQL computes is no field"
        )
        assert first.metadata["flags"] == {"x": [1, None]}
        assert first.metadata["seen"] == "2026-11-28T08:00:00.123456+00:00"
        assert "seen" not in second.metadata, "a column without a value is no field"
        before = database.execute(
            "select id, body, title, year, tags, seen, flags, words from docs where id = 1"
        ).fetchone()
        collection.upsert([first])
        again = database.execute(
            "select id, body, title, year, tags, seen, flags, words from docs where id = 1"
        ).fetchone()
        assert again == before
        collection.upsert([replace(first, metadata={"year": 1, "category": 1})])
        row = database.execute("select title, year, flags, seen is not null from docs where id = 1").fetchone()
        assert row == (None, 1, None, True), "what is not written has its default again"
        for change, problem in (
            ({"metadata": {"yeer": 1}}, r"metadata yeer: no such column; there: category, flags"),
            ({"metadata": {"words": "x"}}, "metadata words: no such column"),
            ({"id": "x"}, "id is bigint: whole numbers only"),
            ({"text": "a\0b"}, "no text with the character NUL"),
        ):
            with pytest.raises(BadInput, match=f"--collection docs: chunk .*: .*{problem}"):
                collection.upsert([replace(first, **{"metadata": {}} | change)])


@pytest.mark.parametrize(
    ("where", "problem"),
    [
        ({"yeer": 2020}, "docs has no column yeer: .* Did you mean 'year'"),
        ({"year": "x"}, "PostgreSQL does not accept it: invalid input syntax for type integer"),
        ({"year": [1]}, "year: the plain form takes a text, a number, a boolean or null"),
        ({"sql": "yeer > 3"}, 'PostgreSQL does not accept it: column "yeer" does not exist'),
        ({"sql": "year >"}, "PostgreSQL does not accept it: syntax error"),
    ],
)
def test_a_filter_that_is_not_understood_is_refused(url, database, where, problem):
    with open_collection(typed(database, url)) as collection:
        for use in (collection.count, lambda where: list(collection.chunks(where))):
            with pytest.raises(BadInput, match=problem):
                use(where)
        with pytest.raises(BadInput, match=problem):
            collection.query(np.ones((1, SIZE), np.float32), 2, where)
        assert collection.count({"year": 2021}) == 1, "and the connection is usable"


INDEXES = {
    "using hnsw (embedding vector_l2_ops) with (m = 24, ef_construction = 99)": (
        "USING hnsw (embedding vector_l2_ops) WITH (m='24', ef_construction='99')",
        "USING hnsw (embedding vector_ip_ops) WITH (m='24', ef_construction='99')",
    ),
    "using ivfflat (embedding vector_cosine_ops) with (lists = 7) where (year > 2000)": (
        "USING ivfflat (embedding vector_cosine_ops) WITH (lists='7') WHERE (year > 2000)",
        "USING ivfflat (embedding vector_ip_ops) WITH (lists='7') WHERE (year > 2000)",
    ),
    "using hnsw ((embedding::halfvec(8)) halfvec_cosine_ops)": (
        "USING hnsw (((embedding)::halfvec(4)) halfvec_cosine_ops)",
        "USING hnsw (((embedding)::halfvec(4)) halfvec_ip_ops)",
    ),
}


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("cosine", [True, False])
def test_a_table_like_another_has_its_indexes_constraints_and_privileges(url, database, index, cosine):
    place = typed(database, url)
    database.execute("drop role if exists reader; create role reader; grant select on docs to reader")
    database.execute(f"create index own on docs {index}")
    database.execute("create index on docs (year); create index on docs using gin (words)")
    with open_store(place) as store:
        source = store.open("docs")
        made = store.create("new", 4, {"by": "us"}, cosine, like=source)
        for one in source.chunks(embeddings=True):
            made.upsert([replace(one, embedding=one.embedding[:4])])
        made.finish(like=source)
        assert [one.on for one in made.table.indexes] == [INDEXES[index][not cosine]]
        assert made.about["by"] == "us"
        found = made.query(np.array([one.embedding[:4] for one in chunks(6)]), 6)
        assert {one.text for one in found[0]} <= {one.text for one in chunks(6)}
    definitions = [row[0] for row in database.execute("select indexdef from pg_indexes where tablename = 'new'")]
    assert sum("(year)" in one for one in definitions) == 1
    assert sum("gin (words)" in one for one in definitions) == 1
    foreign = "select count(*) from pg_constraint where conrelid = 'new'::regclass and contype = 'f'"
    assert database.execute(foreign).fetchone()[0] == 1
    assert database.execute("select has_table_privilege('reader', 'new', 'select')").fetchone()[0]


def test_what_is_not_copied_is_listed(url, database):
    typed(database)
    database.execute("alter table docs add column title_vector vector(3); alter table docs enable row level security")
    database.execute("create policy own on docs using (true); create table notes (doc bigint references docs)")
    database.execute("create function f() returns trigger language plpgsql as 'begin return new; end'")
    database.execute("create trigger touched before update on docs for each row execute function f()")
    with open_collection(config(url, vector_name="embedding", text_field="body")) as collection:
        assert collection.lost(collection) == [
            "row level security",
            "the foreign key notes_doc_fkey of notes",
            "the policy own",
            "the trigger touched",
        ]


def test_what_like_leaves_out_is_copied_or_listed(url, database):
    """CREATE TABLE … LIKE copies no storage parameters, begins identity columns at 1 and lets sequences be shared."""
    typed(database)
    database.execute("drop role if exists reader; create role reader; grant select (year) on docs to reader")
    database.execute("alter table docs set (fillfactor = 70, autovacuum_enabled = false)")
    database.execute("alter table docs add column nr serial; alter table docs replica identity full")
    database.execute("create publication news for table docs; create rule quiet as on delete to docs do also nothing")
    last = database.execute("select max(id) from docs").fetchone()[0]
    place = config(url, vector_name="embedding", text_field="body")
    with open_store(place) as store:
        source = store.open("docs")
        made = store.create("new", SIZE, {}, like=source)
        shared = "a sequence for the new table alone: both take numbers from docs_nr_seq, which goes when the old"
        listed = source.lost(made)
        assert [one for one in listed if not one.startswith(shared)] == [
            "the privileges of the column year",
            "the publication news",
            "the replica identity",
            "the rule quiet",
        ]
        assert len(listed) == 5
        made.upsert(list(source.chunks(embeddings=True)))
        made.finish(like=source)
        made.finish(like=source)
    options = database.execute("select reloptions from pg_class where relname = 'new'").fetchone()[0]
    assert sorted(options) == ["autovacuum_enabled=false", "fillfactor=70"]
    inserted = database.execute("insert into new (body, year) values ('a text', 2020) returning id").fetchone()[0]
    assert inserted == last + 1, "no id of a row that is there"


def test_more_numbers_than_an_index_takes_are_said(url, database, capsys):
    with open_store(config(url)) as store:
        store.create("wide", 2001, {}).finish()
    assert "wide gets no index USING hnsw (embedding vector_cosine_ops): pgvector indexes at most 2,000" in (
        capsys.readouterr().err
    )


def test_tables_of_other_schemas_and_unusual_names(url, database):
    database.execute('create schema "My data"')
    with open_store(config(url)) as store:
        store.create("My data.Docs-1", SIZE, {}).upsert(chunks(4))
        assert store.names() == ["My data.Docs-1"]
        assert store.open("My data.Docs-1").count() == 4
        store.swap_alias("My data.live", "My data.Docs-1")
        assert store.aliases() == {"My data.live": "My data.Docs-1"}
        store.delete("My data.Docs-1")
        assert (store.names(), store.aliases()) == ([], {})
    database.execute('drop schema "My data"')
    for name in ("", "a.b.c", "x" * 64, ".a"):
        assert PgvectorStore.name_problem(name), name
    assert PgvectorStore.name_problem("ä" * 31) is None


@pytest.mark.parametrize(
    ("table", "asked", "problem"),
    [
        ("(id int, t text, v vector(3))", {}, r"--key-field: which .* it has no primary key; there: id \(integer\)"),
        ("(a int, b int, t text, primary key (a, b))", {}, "its primary key has 2 columns"),
        ("(id int primary key, n int)", {}, "--text-field: which column .* none of them is a text"),
        ("(id int primary key, a text, b text)", {}, "a and b may be it"),
        ("(id int primary key, text text)", {"text_field": "txt"}, "--text-field txt: .*Did you mean 'text'"),
        ("(id int primary key, t text)", {"key_field": "idd"}, "--key-field idd: .*Did you mean 'id'"),
        ("(id int primary key, t text, v vector(3))", {"vector_name": "w"}, "--vector-name w: .* vectors: v"),
    ],
)
def test_columns_that_are_not_clear_are_asked_for(url, database, table, asked, problem):
    database.execute(f"create table docs {table}")
    with pytest.raises(BadInput, match=problem):
        open_collection(config(url, **asked))


def test_several_columns_of_vectors_and_none(url, database):
    database.execute("create table two (id int primary key, t text, v vector(3), w vector(3))")
    database.execute("create table none (id int primary key, t text)")
    database.execute("insert into two values (1, 'a', '[1,2,3]', null); insert into none values (1, 'a')")
    for name, problem in (("two", "choose one with --vector-name: v, w"), ("none", "no column of type vector")):
        with open_collection(config(url, name)) as collection:
            assert [one.text for one in collection.chunks()] == ["a"]
            for use in (lambda: next(collection.chunks(embeddings=True)), lambda: collection.query(np.ones((1, 3)), 1)):
                with pytest.raises(BadInput, match=problem):
                    use()
    with open_collection(config(url, "two", vector_name="w")) as collection:
        with pytest.raises(BadInput, match="the row 1 has no vector; leave it out"):
            list(collection.chunks(embeddings=True))
        assert list(collection.chunks({"sql": "w is not null"}, embeddings=True)) == []


def test_reading_sees_the_table_as_it_was_and_ends_no_writing(url, database):
    with open_store(config(url)) as store:
        collection = store.create("docs", SIZE, {})
        collection.upsert(chunks())
        reading = collection.chunks(page=5)
        first = next(reading)
        collection.remove([one.id for one in chunks()])
        collection.upsert(chunks(3))
        assert len({first.id, *(one.id for one in reading)}) == 25
        assert collection.count() == 3


def test_filtered_searches_find_as_many_as_they_are_asked_for(url, database):
    """An hnsw index looks at 40 rows by default, of which few match a filter."""
    rng = np.random.default_rng(0)
    many = [
        replace(chunks(1)[0], id=str(i), metadata={"rare": i % 100 == 0}, embedding=vector.astype(np.float32))
        for i, vector in enumerate(rng.standard_normal((3000, SIZE)))
    ]
    with open_store(config(url)) as store:
        collection = store.create("docs", SIZE, {})
        collection.upsert(many)
        collection.finish()
        database.execute("analyze docs")
        assert len(collection.query(many[0].embedding[None], 25, {"rare": True})[0]) == 25
        assert len(collection.query(many[0].embedding[None], 300)[0]) == 300


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ("--url postgresql://me:s3cr3t@h/db", "--url: holds a password; put it into PGPASSWORD"),
        ("--url http://h", "--url: must look like postgresql://user@localhost"),
        ("--path x", "--path: belongs to --store chroma or qdrant"),
        ("--path x", "needs --url (a server)"),
        ("--url postgresql://h/db --host h", "--host: belongs to --store chroma"),
        ("--url postgresql://nobody@/db?host=/nowhere", "; start it, or name one that this machine can reach"),
        ("--url postgresql://nobody@/db?host=/nowhere --where []", "--where []: must be a JSON object"),
    ],
)
def test_flags_that_are_wrong(flags, problem, capsys, tmp_path):
    pytest.importorskip("psycopg")
    options = ["--offline", "--store", "pgvector", "--collection", "docs", "--output", tmp_path / "o.jsonl"]
    code, out, err = run(capsys, "generate", *options, *flags.split())
    assert (code, out) == (2, "")
    assert problem in err, err
    assert "s3cr3t" not in err


def test_a_database_without_the_extension(url, database):
    database.execute("drop extension vector; create table docs (id int primary key, t text)")
    database.execute("insert into docs values (1, 'a text')")
    with open_collection(config(url)) as collection:
        assert [one.text for one in collection.chunks()] == ["a text"]
        with pytest.raises(BadInput, match="the database has no extension pgvector; CREATE EXTENSION vector"):
            collection.store.create("new", 3, {})


def test_without_psycopg_the_extra_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("data_prep.stores.pgvector.store.psycopg", None)
    options = ["--store", "pgvector", "--url", "postgresql://h/db", "--collection", "docs"]
    code, _, err = run(capsys, "generate", "--offline", *options, "--output", tmp_path / "o.jsonl")
    assert code == 1
    assert "pip install 'embedfleet[pgvector]'" in err


def test_pairs_from_a_table(url, database, capsys, tmp_path):
    typed(database)
    flags = ["--store", "pgvector", "--url", url, "--collection", "docs", "--text-field", "body"]
    flags += ["--where", '{"sql": "year >= 2023"}']
    code, _, err = run(capsys, "generate", "--offline", *flags, "--min-words", "3", "--output", tmp_path / "o.jsonl")
    assert code == 0, err
    rows = read_jsonl(tmp_path / "o.jsonl")
    assert {one["metadata"]["year"] for one in rows} == {2023, 2024, 2025}
