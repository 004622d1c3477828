"""A collection embedded with a model into a new collection of the same store."""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from data_prep.common.console import EVERY_SECONDS, result, say
from data_prep.common.errors import BadInput
from data_prep.common.files import check
from data_prep.common.workers import batches
from data_prep.stores.base import Chunk, Collection, Store, StoreConfig
from data_prep.stores.open import check_target, open_store
from trainer.inference.text_encoder import TextEncoder

FINGERPRINT, DIM, STATE, SOURCE, MODEL = (
    f"embedfleet_{name}" for name in ("model_sha256", "dim", "state", "source", "model")
)
UNFINISHED, WHOLE = "unfinished", "whole"


def reindex(
    config: StoreConfig,
    target: str,
    encoder: TextEncoder,
    *,
    batch: int = 256,
    where: dict[str, Any] | None = None,
    alias: str | None = None,
) -> int:
    """Embeds the chunks of a collection into another one of the same store; returns how many were embedded now.

    Ids, texts and metadata are kept. The target records the model (sha256 of its files) and how it read the texts. Run
    again, killed or not, only chunks that are missing there, or whose text or metadata changed, are embedded. alias: is
    then pointed to the target, in one step. Raises BadInput for a target that this model did not fill, an alias where
    the store has none or that is a collection's name, and what open_collection refuses.
    """
    problems = [f"--batch {batch}: must be 1 or more"] if batch < 1 else []
    if target == config.collection:
        problems.append(f"--target {target}: is --collection; the vectors of another model need another collection")
    check(problems)
    check_target(replace(config, collection=target), "--target")
    with open_store(config) as store:
        source = store.open(config.collection)
        _check_alias(store, alias, target)
        total = source.count(where)
        if not total:
            raise BadInput(f"--collection {source.name}: no chunk" + (" fits --where" if where else ""))
        filled = _target(store, source, target, encoder, _description(config, encoder, where))
        began, embedded = time.monotonic(), 0
        for page in _with_progress(batches(source.chunks(where), batch), source.name, total):
            stored = filled.stored([chunk.id for chunk in page])
            missing = [chunk for chunk in page if stored.get(chunk.id) != chunk]
            if missing:
                vectors = encoder.passages([chunk.text for chunk in missing])
                filled.upsert([Chunk(c.id, c.text, c.metadata, vector) for c, vector in zip(missing, vectors)])
            embedded += len(missing)
        filled.finish(like=source)
        filled.describe({STATE: WHOLE})
        for what in source.not_copied:
            say(f"note: not copied to {target}: {what}")
        _report(filled, encoder, total, embedded, time.monotonic() - began)
        _switch(store, config.collection, target, alias)
    return embedded


def _with_progress(pages: Iterable[list[Chunk]], name: str, total: int) -> Iterator[list[Chunk]]:
    """Yields the pages and prints the progress every EVERY_SECONDS. (The encoder has a bar for each page.)"""
    done, last = 0, time.monotonic()
    for page in pages:
        yield page
        done += len(page)
        if time.monotonic() - last >= EVERY_SECONDS:
            last = time.monotonic()
            say(f"re-embedding {name}: {done:,} of {total:,} chunks")


def _description(config: StoreConfig, encoder: TextEncoder, where: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the target's description: all that decides its vectors and its chunks."""
    spec = encoder.spec
    return {
        FINGERPRINT: encoder.fingerprint,
        DIM: encoder.size,
        "embedfleet_passage_prompt": spec.rules.passage_prompt,
        "embedfleet_passage_max_len": spec.rules.passage_max_len,
        SOURCE: config.collection,
        "embedfleet_where": json.dumps(where, sort_keys=True) if where else "",
    }


def _target(store: Store, source: Collection, name: str, encoder: TextEncoder, facts: dict[str, Any]) -> Collection:
    """Opens the target, or creates it. Raises BadInput if it belongs to another run."""
    if name not in store.names():
        if name in (store.aliases() or {}):
            raise BadInput(
                f"--target {name}: is an alias; name a new collection, and move the alias with --alias {name}"
            )
        facts |= {MODEL: encoder.config.path, STATE: UNFINISHED}
        return store.create(name, encoder.size, facts, cosine=encoder.spec.normalize, like=source)
    target = store.open(name, **source.layout)
    recorded = target.about
    if FINGERPRINT not in recorded:
        raise BadInput(
            f"--target {name}: exists without a record of reindex ({FINGERPRINT} in its metadata), so nothing says "
            "which model filled it; name a new collection, or delete this one first (trainer.search needs no record: "
            "it compares vectors)"
        )
    differing = [key for key, value in facts.items() if recorded.get(key) != value]
    if differing:
        shown = "; ".join(
            f"{key.removeprefix('embedfleet_')}: {_short(recorded[key]) if key in recorded else 'not recorded'}"
            for key in differing
        )
        model = recorded.get(MODEL, "not recorded")
        raise BadInput(
            f"--target {name}: belongs to another run of reindex, of the model {model} ({shown}); "
            "choose another name, or delete it first"
        )
    return target


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 40 else repr(value)


def _check_alias(store: Store, alias: str | None, target: str) -> None:
    if alias is None:
        return
    if store.aliases() is None:
        raise BadInput(
            f"--alias {alias}: {store.kind} has no aliases; leave it out, and open the new collection by its name"
        )
    if alias in [*store.names(), target]:
        raise BadInput(f"--alias {alias}: is a collection's own name; an alias needs a name that no collection has")


def _report(target: Collection, encoder: TextEncoder, total: int, embedded: int, seconds: float) -> None:
    if encoder.cut:
        limit = encoder.spec.rules.passage_max_len
        owner = "--max-len" if encoder.config.passage_max_len else "the model folder's limit"
        say(f"note: {encoder.cut:,} texts are longer than {limit} tokens ({owner}): what comes after is not read")
    if extra := target.count() - total:
        say(f"note: {target.name} holds {extra:,} chunks more than were read: they were deleted from the source since")
    speed = f", {embedded / seconds:.0f} per second" if embedded else ""
    result(
        f"{target.name}: {total:,} chunks with vectors of {encoder.size} numbers by {encoder.config.path}: "
        f"{embedded:,} embedded now{speed}, {total - embedded:,} were there"
    )


def _switch(store: Store, source: str, target: str, alias: str | None) -> None:
    aliases = store.aliases()
    if alias is not None:
        store.swap_alias(alias, target)
        before = f", before to {aliases[alias]}" if alias in aliases else ""
        result(f"alias {alias}: points to {target}{before}")
    elif aliases is None:
        say(f"{store.kind} has no aliases: whoever searches {source} goes on doing so until told to open {target}")
    elif source in aliases:
        say(f"{source} is an alias and still points to {aliases[source]}: --alias {source} moves it to {target}")
