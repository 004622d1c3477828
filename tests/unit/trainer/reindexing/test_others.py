"""Targets that others write to: after an alias has moved, or, where a store has none, after they opened the target."""

from dataclasses import replace

import numpy as np
import pytest

from data_prep.common.errors import BadInput
from data_prep.stores.base import Chunk, StoreConfig
from data_prep.stores.open import open_collection, open_store
from tests.unit.trainer.reindexing.helpers import COUNT, chunks, encoder, flags, read
from trainer import reindex as reindex_command
from trainer.reindexing import copying
from trainer.reindexing.reindex import reindex, roll_back


def switched(config: StoreConfig, model) -> dict[str, str]:
    """Fills docs-new and lets an alias point to it, where the store has any; returns the options for a repetition."""
    options = {} if config.kind == "chroma" else {"alias": "live"}
    reindex(config, "docs-new", encoder(model), **options)
    return options


def write(config: StoreConfig, name: str, *written: Chunk, gone: str | None = None) -> None:
    """Writes chunks with vectors of no model, and deletes one."""
    with open_collection(replace(config, collection=name)) as collection:
        vector = np.full(collection.size, collection.size**-0.5, np.float32)
        collection.upsert([replace(one, embedding=vector) for one in written])
        collection.remove([gone] if gone else [])


def contents(config: StoreConfig, name: str) -> dict[str, tuple]:
    return {one.id: (one.text, one.metadata) for one in read(config, name)}


NEW, CORRECTED = replace(chunks()[0], id="1000", text="w7 w8"), replace(chunks()[1], text="w5 w6")


def test_what_others_wrote_to_a_target_is_deleted_and_overwritten_on_request_only(source, tiny_bert, capsys):
    options = switched(source, tiny_bert)
    write(source, "live" if options else "docs-new", NEW, CORRECTED)
    before = contents(source, "docs-new")
    argv = ["--model", str(tiny_bert), "--device", "cpu", *flags(source), "--collection", "docs"]
    argv += ["--target", "docs-new", *(["--alias", "live"] if options else [])]
    assert reindex_command.main(argv) == 2
    err = capsys.readouterr().err
    named = " (alias live)" if options else ""
    assert f"--target docs-new{named}: is not as reindex left it: others wrote to it. This run would delete 1" in err
    assert "delete 1 chunks that docs does not have (1000) and overwrite 1 chunks that docs has otherwise (1)." in err
    assert contents(source, "docs-new") == before
    assert before["1000"][0] == "w7 w8" and before["1"][0] == "w5 w6"
    assert reindex_command.main([*argv, "--overwrite-target"]) == 0
    assert contents(source, "docs-new") == contents(source, "docs")
    assert reindex_command.main(argv) == 0, "as reindex left it"


def test_what_others_deleted_from_a_target_does_not_come_back(source, tiny_bert):
    options = switched(source, tiny_bert)
    write(source, "docs-new", gone="7")
    with pytest.raises(BadInput, match="This run would write again 1 chunks that were deleted there"):
        reindex(source, "docs-new", encoder(tiny_bert), **options)
    assert "7" not in contents(source, "docs-new")


def test_a_target_that_others_only_read_follows_its_source(source, tiny_bert):
    options = switched(source, tiny_bert)
    write(source, "docs", NEW, CORRECTED, gone="7")
    assert reindex(source, "docs-new", encoder(tiny_bert), **options) == 2
    assert contents(source, "docs-new") == contents(source, "docs")


def test_what_others_wrote_to_both_is_no_loss(source, tiny_bert):
    options = switched(source, tiny_bert)
    write(source, "docs", NEW)
    with open_collection(replace(source, collection="docs-new")) as collection:
        (vector,) = encoder(tiny_bert).passages([NEW.text])
        collection.upsert([replace(NEW, embedding=vector)])
    assert reindex(source, "docs-new", encoder(tiny_bert), **options) == 0


def test_a_run_that_is_killed_in_a_target_that_was_whole_goes_on_if_nothing_is_lost(source, tiny_bert):
    options = switched(source, tiny_bert)
    write(source, "docs", *(replace(one, id=f"{100 + i}") for i, one in enumerate(chunks()[:8])))
    killed = encoder(tiny_bert)
    killed.most = 4
    with pytest.raises(KeyboardInterrupt):
        reindex(source, "docs-new", killed, batch=4, **options)
    write(source, "docs-new", NEW)
    refusal = r"others wrote to it, or a run was stopped there\. This run would delete 1 .*\(1000\)\. A"
    with pytest.raises(BadInput, match=refusal):
        reindex(source, "docs-new", encoder(tiny_bert), **options)
    write(source, "docs-new", gone="1000")
    assert reindex(source, "docs-new", encoder(tiny_bert), **options) == 4
    assert contents(source, "docs-new") == contents(source, "docs")


def test_an_update_that_is_killed_goes_on_where_no_alias_points_to_the_target(source, tiny_bert):
    reindex(source, "docs-new", encoder(tiny_bert))
    write(source, "docs", *(replace(one, text=f"w9 w{i}") for i, one in enumerate(chunks()[:8])))
    killed = encoder(tiny_bert)
    killed.most = 4
    with pytest.raises(KeyboardInterrupt):
        reindex(source, "docs-new", killed, batch=4)
    if source.kind == "chroma":  # an application may have opened the target
        with pytest.raises(BadInput, match="or a run was stopped there. This run would overwrite 4 chunks"):
            reindex(source, "docs-new", encoder(tiny_bert))
    assert reindex(source, "docs-new", encoder(tiny_bert), overwrite=source.kind == "chroma") == 4
    assert contents(source, "docs-new") == contents(source, "docs")


def test_a_target_of_an_earlier_version_follows_its_source_until_an_alias_points_to_it(source, tiny_bert, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("trainer.reindexing.reindex.CONTENT", "embedfleet_unknown")
        reindex(source, "docs-new", encoder(tiny_bert))
    write(source, "docs", NEW)
    assert reindex(source, "docs-new", encoder(tiny_bert), batch=8) == 1, "nothing is lost by it"
    with monkeypatch.context() as patched:
        patched.setattr("trainer.reindexing.reindex.CONTENT", "embedfleet_unknown")
        reindex(source, "docs-newer", encoder(tiny_bert))
    write(source, "docs", gone="7")
    if source.kind != "chroma":
        with open_store(source) as store:
            store.swap_alias("live", "docs-newer")
    with pytest.raises(BadInput, match="kept no record of what it left there. This run would delete 1 chunks"):
        reindex(source, "docs-newer", encoder(tiny_bert))
    assert reindex(source, "docs-newer", encoder(tiny_bert), overwrite=True) == 0


def test_a_target_that_is_still_being_filled_is_used_once_an_alias_points_to_it(source, tiny_bert):
    killed = encoder(tiny_bert)
    killed.most = 20
    with pytest.raises(KeyboardInterrupt):
        reindex(source, "docs-new", killed, batch=10)
    write(source, "docs-new", NEW)
    if source.kind != "chroma":
        with open_store(source) as store:
            store.swap_alias("live", "docs-new")
        with pytest.raises(BadInput, match=r"docs-new \(alias live\): .* would delete 1 .*\(1000\)"):
            reindex(source, "docs-new", encoder(tiny_bert))
    assert reindex(source, "docs-new", encoder(tiny_bert), overwrite=source.kind != "chroma") == COUNT - 20


def test_a_watched_target_is_left_to_those_to_whom_an_alias_points_it(source, tiny_bert, tmp_path, monkeypatch):
    if source.kind == "chroma":
        pytest.skip("Chroma has no aliases")

    until = tmp_path / "now"

    def pause(seconds):
        if aliases_moved:
            until.touch()  # a test that fails ends
        aliases_moved.append(True)
        with open_store(source) as store:
            store.swap_alias("live", "docs-new")
        write(source, "live", NEW)

    aliases_moved = []
    monkeypatch.setattr(copying, "_pause", pause)
    with pytest.raises(BadInput, match="--watch: the alias live points to docs-new"):
        reindex(source, "docs-new", encoder(tiny_bert), watch=until)
    assert "1000" in contents(source, "docs-new")
    write(source, "docs", NEW, CORRECTED)
    write(source, "live", CORRECTED)
    with pytest.raises(BadInput, match="--watch: the alias live points to docs-new"):
        reindex(source, "docs-new", encoder(tiny_bert), watch=until)


def test_a_target_that_the_source_is_an_alias_of_is_refused(source, tiny_bert):
    """It would equal itself, and its record would say that reindex wrote what others did."""
    if source.kind == "chroma":
        pytest.skip("Chroma has no aliases")
    with open_store(source) as store:
        store.swap_alias("live", "docs")
    live = replace(source, collection="live")
    reindex(live, "docs-new", encoder(tiny_bert), alias="live")
    write(source, "live", NEW)
    with pytest.raises(BadInput, match="--target docs-new: is the collection that --collection live points to"):
        reindex(live, "docs-new", encoder(tiny_bert), alias="live")
    roll_back(source, "live")
    with pytest.raises(BadInput, match=r"others wrote to it. This run would delete 1 .*\(1000\)"):
        reindex(live, "docs-new", encoder(tiny_bert), alias="live")


def test_what_an_alias_does_not_show_any_more_is_said(source, tiny_bert, other_model, capsys):
    if source.kind == "chroma":
        pytest.skip("Chroma has no aliases")
    reindex(source, "docs-1", encoder(tiny_bert), alias="live")
    reindex(source, "docs-2", encoder(other_model), alias="live")
    assert "keeps" not in capsys.readouterr().err
    write(source, "live", NEW, CORRECTED)
    roll_back(source, "live")
    one, other = "1 chunks that docs-1 does not have: 1000", "1 chunks that docs-1 has otherwise: 1\n"
    assert f"docs-2 keeps {one}\nnote: docs-2 keeps {other}" in capsys.readouterr().err
    write(source, "live", *(replace(NEW, id=f"{2000 + i}") for i in range(6)))
    reindex(source, "docs-3", encoder(tiny_bert), alias="live")
    shown = "2000, 2001, 2002, 2003, 2004, …"
    assert f"docs-1 keeps 6 chunks that docs-3 does not have: {shown}" in capsys.readouterr().err
