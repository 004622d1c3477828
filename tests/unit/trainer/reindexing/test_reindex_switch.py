"""The switch to a collection embedded anew: checked before, undone on request, and right while others write."""

import json
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from data_prep.common.errors import BadInput, Failed
from data_prep.stores.base import Chunk, StoreConfig
from data_prep.stores.open import open_collection, open_store
from data_prep.stores.qdrant import collection as qdrant_collection
from data_prep.stores.qdrant import store as qdrant_store
from data_prep.stores.qdrant.collection import QdrantCollection
from tests.servers import QdrantProtocol, answering
from tests.unit.trainer.reindexing.helpers import COUNT, chunks, encoder, fill, read, served
from trainer import reindex as reindex_command
from trainer.reindexing import copying
from trainer.reindexing.check import Sample
from trainer.reindexing.copying import alike
from trainer.reindexing.ranks import Ranks
from trainer.reindexing.reindex import reindex, roll_back


@pytest.fixture
def protocol():
    return QdrantProtocol()


@pytest.fixture
def source(protocol):
    with served(protocol) as config:
        yield config


def aliases(config: StoreConfig) -> dict[str, str]:
    with open_store(config) as store:
        return store.aliases()


def expect_equal(config: StoreConfig, target: str, model) -> None:
    old, new = read(config, "docs"), read(config, target)
    assert [(c.id, c.text, c.metadata) for c in new] == [(c.id, c.text, c.metadata) for c in old]
    own = model.passages([chunk.text for chunk in new])
    np.testing.assert_allclose(np.array([chunk.embedding for chunk in new]), own, atol=1e-6)


def test_an_alias_is_moved_back(source, tiny_bert, other_model, capsys):
    reindex(source, "docs-1", encoder(tiny_bert), alias="live")
    with pytest.raises(BadInput, match="--alias live: points to docs-1, and reindex did not move it"):
        roll_back(source, "live")
    reindex(source, "docs-2", encoder(other_model), alias="live")
    reindex(source, "docs-2", encoder(other_model), alias="live")
    assert aliases(source) == {"live": "docs-2"}
    flags = ["--rollback", "--alias", "live", "--store", "qdrant", "--url", source.url, "--text-field", "body"]
    assert reindex_command.main(flags) == 0
    assert "alias live: points to docs-1 again, before to docs-2" in capsys.readouterr().out
    assert aliases(source) == {"live": "docs-1"}
    with pytest.raises(BadInput, match="--alias other: no such alias; there: live"):
        roll_back(source, "other")
    reindex(source, "docs-3", encoder(tiny_bert), alias="live")
    with open_store(source) as store:
        store.delete("docs-1")
    assert aliases(source) == {"live": "docs-3"}
    with pytest.raises(BadInput, match="--alias live: pointed to docs-1 before, which is not there any more"):
        roll_back(source, "live")


def test_flags_that_are_missing_are_listed(capsys):
    assert reindex_command.main(["--model", "m"]) == 2
    err = capsys.readouterr().err
    assert "--collection: is missing; it names" in err and "--target: is missing; it names" in err
    assert reindex_command.main(["--rollback"]) == 2
    assert "--alias: is missing" in capsys.readouterr().err


def test_a_search_that_finds_too_little_moves_no_alias(source, tiny_bert, monkeypatch, capsys):
    nearest = QdrantCollection.nearest
    monkeypatch.setattr(QdrantCollection, "nearest", lambda self, vectors, *argv: nearest(self, -vectors, *argv))
    with pytest.raises(
        Failed, match=r"its search finds \d+\.\d% of the 10 nearest .* less than --recall 0.95; the alias stays"
    ):
        reindex(source, "docs-new", encoder(tiny_bert), alias="live")
    assert aliases(source) == {}
    with open_collection(replace(source, collection="docs-new")) as collection:
        assert collection.about["embedfleet_state"] == "unfinished"
    assert reindex(source, "docs-new", encoder(tiny_bert)) == 0, "without an alias it is said"
    assert "less than --recall 0.95: let its index look" in capsys.readouterr().err
    monkeypatch.undo()
    reindex(source, "docs-new", encoder(tiny_bert), alias="live", recall=1.0)
    assert "its search finds 100.0% of the 10 nearest" in capsys.readouterr().err
    assert aliases(source) == {"live": "docs-new"}
    with pytest.raises(BadInput, match="--recall 1.5: must be 0 to 1"):
        reindex(source, "docs-new", encoder(tiny_bert), recall=1.5)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda one: replace(one, embedding=one.embedding[::-1].copy()),
            "1 of 40 chunks that were read back differ from what was written, such as 7",
        ),
        (
            lambda one: replace(one, metadata={**one.metadata, "n": -1}),
            r"docs-new holds 40 chunks, docs 40, and others write on \(1 chunks in the last round, such as 7\); the",
        ),
    ],
)
def test_what_is_not_read_back_as_it_was_written_moves_no_alias(source, tiny_bert, monkeypatch, change, problem):
    upsert = QdrantCollection.upsert

    def changed(self, made):
        upsert(self, [change(one) if one.id == "7" else one for one in made])

    monkeypatch.setattr(QdrantCollection, "upsert", changed)
    with pytest.raises(Failed, match=problem):
        reindex(source, "docs-new", encoder(tiny_bert), alias="live")
    assert aliases(source) == {}


def write(config: StoreConfig, step: int) -> None:
    """A new chunk, a changed text, a changed field and a deletion, others at each step."""
    with open_collection(config) as collection:
        new = replace(chunks()[0], id=str(100 + step), text=f"w{step} new")
        text, field = (
            replace(chunks()[step], text=f"w{step} changed"),
            replace(chunks()[20 + step], metadata={"n": -step}),
        )
        collection.upsert([new, text, field])
        collection.remove([str(30 + step)])


def test_five_kills_with_writes_and_deletions_meanwhile(source, protocol, tiny_bert, monkeypatch):
    for step in range(5):
        killed = encoder(tiny_bert)
        killed.most = 9
        with pytest.raises(KeyboardInterrupt):
            reindex(source, "docs-new", killed, batch=4, alias="live")
        write(source, step)
    swaps = [one for one in protocol.requests if one == "POST /collections/aliases"]
    assert swaps == [] and aliases(source) == {}
    reindex(source, "docs-new", encoder(tiny_bert), batch=4, alias="live")
    expect_equal(source, "docs-new", encoder(tiny_bert))
    assert protocol.requests.count("POST /collections/aliases") == 1
    assert aliases(source) == {"live": "docs-new"}


def test_watching_copies_what_is_written_until_the_file_is_there(source, protocol, tiny_bert, tmp_path, monkeypatch):
    until, steps = tmp_path / "now", iter(range(5))

    def pause(seconds):
        step = next(steps)
        assert aliases(source) == {}
        write(source, step)
        if step == 4:
            until.touch()

    monkeypatch.setattr(copying, "_pause", pause)
    embedded = reindex(source, "docs-new", encoder(tiny_bert), alias="live", watch=until)
    assert embedded == COUNT + 5 * 3
    expect_equal(source, "docs-new", encoder(tiny_bert))
    assert protocol.requests.count("POST /collections/aliases") == 1


def test_what_is_written_while_the_last_chunks_are_embedded_is_copied_too(source, tiny_bert):
    class Disturbed(type(encoder(tiny_bert))):
        def passages(self, texts):
            if self.texts == 20:
                write(source, 0)
            return super().passages(texts)

    model = Disturbed(encoder(tiny_bert).config, "cpu")
    reindex(source, "docs-new", model, batch=10, alias="live")
    expect_equal(source, "docs-new", encoder(tiny_bert))


def test_a_source_that_never_rests_is_given_up(source, tiny_bert, monkeypatch, capsys):
    counts = iter(range(1000, 2000))
    count = QdrantCollection.count
    monkeypatch.setattr(
        QdrantCollection, "count", lambda self, where=None: next(counts) if self.name == "docs" else count(self, where)
    )
    with pytest.raises(Failed, match=r"docs-new holds 40 chunks, docs 1,\d+, and others write on .*; the alias stays"):
        reindex(source, "docs-new", encoder(tiny_bert), alias="live")
    assert reindex(source, "docs-new", encoder(tiny_bert)) == 0, "without an alias it is said"
    assert "others write on (0 chunks in the last round); run again" in capsys.readouterr().err
    monkeypatch.undo()
    assert aliases(source) == {}


def test_a_chunk_that_no_longer_fits_the_filter_leaves_the_target(source, tiny_bert):
    reindex(source, "docs-even", encoder(tiny_bert), where={"even": True})
    with open_collection(source) as collection:
        collection.upsert([replace(chunks()[4], metadata={"n": 4, "even": False})])
    assert reindex(source, "docs-even", encoder(tiny_bert), where={"even": True}, alias="live") == 0
    assert {int(one.id) for one in read(source, "docs-even")} == {*range(0, COUNT, 2)} - {4}
    assert aliases(source) == {"live": "docs-even"}


def test_a_run_that_was_stopped_near_its_end_is_checked_as_a_whole(source, tiny_bert):
    """The sample is of all chunks, not of the few that the last run embedded."""
    reindex(source, "docs-new", encoder(tiny_bert))
    with open_collection(replace(source, collection="docs-new")) as made:
        (one,) = made.stored(["11"]).values()
        made.upsert([replace(one, embedding=np.ones(32, np.float32))])
    with open_collection(source) as collection:
        collection.upsert([replace(chunks()[0], id="99")])
    with pytest.raises(Failed, match="1 of 41 chunks that were read back differ from what was written, such as 11"):
        reindex(source, "docs-new", encoder(tiny_bert), alias="live")
    assert aliases(source) == {}


def test_a_collection_is_checked_when_the_server_has_made_its_indexes(source, protocol, tiny_bert, monkeypatch, capsys):
    """While Qdrant's status is yellow it searches exactly what is not in its index yet."""
    pauses = []
    monkeypatch.setattr(qdrant_collection, "_pause", pauses.append)
    reindex(source, "docs-new", encoder(tiny_bert))
    protocol.busy = 4
    with open_collection(replace(source, collection="docs-new")) as made:
        made.finish()
    assert len(pauses) == 3, "the first answer was the opening's"
    assert capsys.readouterr().err.count("waiting until Qdrant has made its indexes") == 1


def test_a_rate_limit_is_waited_for(tiny_bert, monkeypatch, capsys):
    pauses = []
    monkeypatch.setattr(qdrant_store, "_pause", pauses.append)
    with answering(QdrantProtocol(allowed=5)) as port:
        config = StoreConfig("qdrant", "docs", url=f"http://127.0.0.1:{port}", text_field="body")
        fill(config)
        assert reindex(config, "docs-new", encoder(tiny_bert), batch=10) == COUNT
    assert len(pauses) > 5 and {*pauses} == {1}
    assert "the server's rate limit is reached: waiting for 1 s" in capsys.readouterr().err


def test_deletions_that_shift_the_pages_of_chroma_cost_a_round(tiny_bert, tmp_path, capsys):
    config = StoreConfig("chroma", "docs", path=tmp_path)
    fill(config)

    class Disturbed(type(encoder(tiny_bert))):
        def passages(self, texts):
            if self.texts == 10:
                source.remove(["0", "1"])
            return super().passages(texts)

    model = Disturbed(encoder(tiny_bert).config, "cpu")
    with ExitStack() as stack:
        store = stack.enter_context(open_store(config))
        source = store.open("docs")
        target = store.create("docs-new", 32, {}, like=source)
        ranks = stack.enter_context(Ranks(model, config, "docs-new", None))
        ranks.load()
        ranks.fill(target)
        copy = copying.Copy(source, target, ranks, 10, None)
        source.chunks = partial(source.chunks, page=5)
        assert copy.once() > 0 and not copy.complete
        assert copy.settle()
        assert {one.id for one in target.chunks()} == {one.id for one in chunks()} - {"0", "1"}
    assert "chunks were deleted while it was read" in capsys.readouterr().err


@pytest.mark.parametrize("there", [True, False])
def test_a_file_to_wait_for_that_is_there_or_can_never_be_is_refused(there, source, tiny_bert, tmp_path):
    until = tmp_path / "now" if there else tmp_path / "none" / "now"
    if there:
        until.touch()
    reason = "exists already, so nothing would be watched" if there else "has no folder"
    with pytest.raises(BadInput, match=f"--watch .*: {reason}"):
        reindex(source, "docs-new", encoder(tiny_bert), watch=until)


def test_a_store_without_aliases_says_so_when_asked_to_go_back(tiny_bert, tmp_path):
    config = StoreConfig("chroma", "docs", path=tmp_path)
    fill(config)
    with pytest.raises(BadInput, match="--alias live: Chroma has no aliases"):
        roll_back(config, "live")


def test_metadata_that_is_no_number_is_not_taken_for_a_change(tiny_bert, tmp_path):
    config = StoreConfig("chroma", "docs", path=tmp_path)
    with open_store(config, create=True) as store:
        store.create("docs", 4, {}).upsert([replace(one, metadata={"share": float("nan")}) for one in chunks()[:3]])
    model = encoder(tiny_bert)
    assert reindex(config, "docs-new", model) == 3
    assert model.texts == 3 + 3, "embedded once, and again for the check"


def test_a_sample_is_of_the_whole_stream():
    sample = Sample()
    sample.add([Chunk(str(i), "") for i in range(10_000)])
    drawn = np.array([int(one.id) for one in sample.chunks])
    assert len(drawn) == len({*drawn}) == 64
    assert 3000 < drawn.mean() < 7000 and drawn.max() > 8000


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([1.0, 2.0], [1.0 + 1e-8, 2.0], True),
        ([1.0, 2.0], [1.1, 2.0], False),
        ({"a": [1.0]}, {"a": [1]}, True),
        ({"a": [1.0]}, {"b": [1.0]}, False),
        ([[1.0]], [[1.0], [2.0]], False),
        ({"indices": [3], "values": [0.5]}, {"indices": [4], "values": [0.5]}, False),
        (None, {}, False),
        ("1", "1", True),
    ],
)
def test_values_that_differ_by_rounding_are_equal(one, other, same):
    assert alike(one, other) is same
    assert alike(json.loads(json.dumps(one)), other) is same
