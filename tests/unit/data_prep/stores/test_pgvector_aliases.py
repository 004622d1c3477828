"""Aliases of tables of PostgreSQL, which are views, beside the views that people make."""

import pytest

from data_prep.common.errors import BadInput
from data_prep.stores.open import open_store
from tests.unit.data_prep.stores.test_pgvector import config, typed
from tests.unit.data_prep.stores.test_stores import SIZE, chunks


def test_an_alias_is_a_view_that_moves_in_one_transaction(url, database):
    with open_store(typed(database, url)) as store:
        store.swap_alias("live", "docs")
        database.execute("drop role if exists reader; create role reader; grant select on live to reader")
        store.create("new", 4, {}, like=store.open("docs"))
        store.swap_alias("live", "new")
        assert store.aliases() == {"live": "new"}
        assert database.execute("select has_table_privilege('reader', 'live', 'select')").fetchone()[0]
        assert database.execute("select count(*) from live").fetchone()[0] == 0
        assert store.open("live").size == 4
        store.swap_alias("live", "docs")
        database.execute("create view best as select * from live where year > 2021")
        with pytest.raises(BadInput, match="--alias live: something needs the view as it is .view best depends on"):
            store.swap_alias("live", "new")
        assert store.aliases() == {"live": "docs"}, "as it was"
        assert database.execute("select count(*) from best").fetchone()[0] > 0
        for taken in ("best", "docs"):
            with pytest.raises(BadInput, match=f"--alias {taken}: is a view or table that was not made here"):
                store.swap_alias(taken, "new")


def test_a_view_that_people_made_or_changed_is_no_alias(url, database):
    with open_store(config(url)) as store:
        store.create("v1", SIZE, {}).upsert(chunks(4))
        store.create("v2", SIZE, {})
        store.swap_alias("live", "v1")
        changed = "create or replace view live as select * from v1 where id = '1'"
        for comment, reason in (
            ("embedfleet: {}", "was changed since it was made here, and shows no whole table; .*drop the view"),
            ("feeds the embedfleet: dashboard", "is a view or table that was not made here"),
            ("see\nembedfleet: {} of last year", "is a view or table that was not made here"),
        ):
            database.execute(f"{changed}; comment on view live is '{comment}'")
            assert store.aliases() == {}
            assert [one.id for one in store.open("live", key_field="id").chunks()] == ["1"]
            with pytest.raises(BadInput, match=f"--alias live: {reason}"):
                store.swap_alias("live", "v2")
            with pytest.raises(BadInput, match="--collection v1: something needs it .view live depends on table v1.;"):
                store.delete("v1")
            assert database.execute("select id from live").fetchall() == [("1",)]
            assert database.execute("select obj_description('live'::regclass)").fetchone()[0] == comment


def test_an_alias_keeps_its_comment_and_stays_one_when_its_table_gets_a_column(url, database):
    with open_store(config(url)) as store:
        store.create("v1", SIZE, {})
        store.create("Version 2", SIZE, {})
        store.swap_alias("live", "v1")
        database.execute("comment on view live is E'read by search\nembedfleet: {}'")
        database.execute('alter table v1 add "Seen at" int')
        assert store.aliases() == {"live": "v1"}
        for name in ("v1", "Version 2"):
            store.swap_alias("live", name)
            assert store.aliases() == {"live": name}
        comment = database.execute("select obj_description('live'::regclass)").fetchone()[0]
        assert comment == "read by search\nembedfleet: {}"
        store.delete("Version 2")
        assert store.aliases() == {}
