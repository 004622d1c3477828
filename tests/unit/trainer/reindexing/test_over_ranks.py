"""Re-indexing by two ranks: into servers, which both write, and into embedded stores, which rank 0 writes."""

from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest

from data_prep.common.errors import BadInput
from data_prep.stores.base import Chunk, StoreConfig
from data_prep.stores.open import open_collection, open_store
from tests import forked
from tests.counted_reindex import Log, chunk, fill, flags
from tests.postgres import postgres_server
from tests.servers import QdrantProtocol, answering
from trainer.config.sections import ModelConfig
from trainer.inference.text_encoder import TextEncoder
from trainer.reindexing.reindex import reindex

COUNT, BATCH = 62, 4


@pytest.fixture
def protocol():
    return QdrantProtocol()


@pytest.fixture
def qdrant(protocol):
    with answering(protocol) as port:
        yield filled(StoreConfig("qdrant", "docs", url=f"http://127.0.0.1:{port}", text_field="body"))


@pytest.fixture(params=["qdrant server", "pgvector", "chroma folder", "qdrant folder"])
def source(request, tmp_path):
    """Chroma's server: tests/soak/reindexing_ranks.py."""
    kind, _, place = request.param.partition(" ")
    if place == "folder":
        yield filled(StoreConfig(kind, "docs", path=tmp_path / "store"))
    elif kind == "pgvector":
        with postgres_server() as url:
            yield filled(StoreConfig("pgvector", "docs", url=url, text_field="body"))
    else:
        yield request.getfixturevalue("qdrant")


def filled(config: StoreConfig) -> StoreConfig:
    with open_store(config, create=True) as store:
        fill(store.create("docs", 4, {}), COUNT)
    return config


def read(config: StoreConfig, name: str) -> dict[str, Chunk]:
    with open_collection(replace(config, collection=name)) as collection:
        return {one.id: one for one in collection.chunks(embeddings=True)}


def state(config: StoreConfig, name: str) -> str:
    with open_collection(replace(config, collection=name)) as collection:
        return collection.about["embedfleet_state"]


def encoder(folder, **options) -> TextEncoder:
    return TextEncoder(ModelConfig(path=str(folder)), "cpu", **options)


def expect_equal(config: StoreConfig, name: str, model: TextEncoder) -> None:
    """Every chunk of docs stands once in the collection, with the vector that one process makes."""
    new = read(config, name)
    assert sorted(new.values(), key=lambda one: int(one.id)) == [chunk(i) for i in range(COUNT)]
    own = model.passages([one.text for one in new.values()])
    np.testing.assert_allclose(np.array([one.embedding for one in new.values()]), own, atol=1e-6)


def test_two_ranks_killed_twice_embed_each_chunk_once(source, tiny_bert, tmp_path):
    argv = [*flags(source, tiny_bert), "--target", "docs-new", "--batch", str(BATCH)]
    ends, there, embedded = [{"rank1": (2, "killed")}, {"rank0": (2, "killed")}, {}], set(), 0
    for step, end in enumerate(ends):
        log = Log(tmp_path / f"log-{step}")
        group = log.start(argv, **end)
        code = forked.wait_for_all(group, 240)
        said = "\n".join(one.stdout + one.stderr for one in group)
        batches = [log.embedded(rank) for rank in (0, 1)]
        if not end:
            assert code == 0, said
            assert len(batches[0].pop()) == COUNT, "which are read back and compared"
            assert all(batches), "each rank has its part"
            assert (log.written(1) > 0) == (source.path is None), "servers are written by all ranks"
        else:
            assert code != 0, said
            assert state(source, "docs-new") == "unfinished"
        texts = [text for of_rank in batches for batch in of_rank for text in batch]
        assert len({*texts}) == len(texts) and not {*texts} & there, "nothing is embedded again that was written"
        assert all(len(batch) <= BATCH for of_rank in batches for batch in of_rank)
        there, embedded = {one.text for one in read(source, "docs-new").values()}, embedded + len(texts)
    assert COUNT < embedded <= COUNT + 2 * 2 * BATCH, "one batch per rank and kill"
    assert state(source, "docs-new") == "whole"
    expect_equal(source, "docs-new", encoder(tiny_bert))


def test_a_rank_that_fails_ends_all_with_its_message(qdrant, tiny_bert, tmp_path):
    argv = [*flags(qdrant, tiny_bert), "--target", "docs-new", "--batch", str(BATCH)]
    group = Log(tmp_path / "log").start(argv, rank1=(2, "fails"))
    assert forked.wait_for_all(group, 120) != 0
    assert "rank 1: error: no memory for this batch" in group[1].stderr
    assert state(qdrant, "docs-new") == "unfinished"


def test_rank_0_speaks_for_all_checks_and_moves_the_alias(qdrant, protocol, tiny_bert, tmp_path):
    until, base = tmp_path / "now", flags(qdrant, tiny_bert)
    command = ["-m", "trainer.reindex", *base, "--batch", str(BATCH), "--alias", "live"]
    done = forked.run_ranks(2, *command, "--target", "docs")
    assert done.returncode == 2
    assert done.both.count("--target docs: is --collection") == 1
    done = forked.run_ranks(2, *command, "--target", "docs-1", "--precision", "bf16")
    assert done.returncode == 0, done.both
    assert done.both.count("alias live: points to docs-1") == 1
    assert f"docs-1: {COUNT} chunks with vectors of 32 numbers" in done.stdout
    done = forked.run_ranks(2, *command, "--target", "docs-1")
    assert done.returncode == 0, done.both
    assert done.both.count("note: docs-1 holds vectors that were embedded in bf16, so this run embeds in bf16") == 1
    group = forked.ranks(2, [*command, "--target", "docs-2", "--watch", str(until)])
    group[0].wait_until_it_says("watching docs until")
    with open_collection(qdrant) as collection:
        collection.upsert([replace(chunk(5), metadata={"n": -5})])
    until.touch()
    assert forked.wait_for_all(group, 240) == 0, group[0].stderr + group[1].stderr
    assert read(qdrant, "docs-2")["5"].metadata == {"n": -5}
    assert protocol.requests.count("POST /collections/aliases") == 3, "two of them the same"
    done = forked.run_ranks(2, "-m", "trainer.reindex", "--rollback", "--alias", "live", *base)
    assert done.returncode == 0 and done.stdout.count("alias live: points to docs-1 again") == 1, done.both


def test_a_vector_is_added_by_two_ranks(qdrant, tiny_bert, tmp_path):
    log = Log(tmp_path / "log")
    group = log.start([*flags(qdrant, tiny_bert), "--into-vector", "new", "--batch", str(BATCH)])
    assert forked.wait_for_all(group, 120) == 0, group[0].stderr + group[1].stderr
    assert min(log.written(0), log.written(1)) > COUNT // 4 and log.written(0) + log.written(1) == COUNT
    expect_equal(replace(qdrant, vector_name="new"), "docs", encoder(tiny_bert))


def test_vectors_of_another_precision_are_not_mixed(tiny_bert, tmp_path, capsys):
    source = filled(StoreConfig("chroma", "docs", path=tmp_path / "store"))
    reindex(source, "docs-new", encoder(tiny_bert, precision="bf16"), batch=BATCH)
    with open_collection(source) as collection:
        collection.upsert([replace(chunk(7), text="w1 w2 w3")])
    with pytest.raises(BadInput, match="--precision fp32: docs-new holds vectors that were embedded in bf16; use"):
        reindex(source, "docs-new", encoder(tiny_bert, precision="fp32"))
    model = encoder(tiny_bert)
    assert reindex(source, "docs-new", model) == 1
    assert (
        "docs-new holds vectors that were embedded in bf16, so this run embeds in bf16 too" in capsys.readouterr().err
    )
    in_bf16 = encoder(tiny_bert, precision="bf16").passages(["w1 w2 w3"])[0]
    np.testing.assert_allclose(read(source, "docs-new")["7"].embedding, in_bf16, atol=1e-6)
    assert np.abs(in_bf16 - encoder(tiny_bert).passages(["w1 w2 w3"])[0]).max() > 1e-5, "it makes a difference"


def test_a_collection_that_was_whole_is_unfinished_while_it_changes(tiny_bert, tmp_path, monkeypatch):
    source = filled(StoreConfig("chroma", "docs", path=tmp_path / "store"))
    reindex(source, "docs-new", encoder(tiny_bert))
    with open_collection(source) as collection:
        collection.upsert([replace(chunk(7), text="w1 w2 w3")])
    stopped = encoder(tiny_bert)
    monkeypatch.setattr(stopped, "passages", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        reindex(source, "docs-new", stopped)
    assert state(source, "docs-new") == "unfinished"
    assert reindex(source, "docs-new", encoder(tiny_bert)) == 1
    assert state(source, "docs-new") == "whole"
