"""A collection embedded with a model into a new collection of the same store."""

import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.common.console import EVERY_SECONDS, result, say
from data_prep.common.errors import BadInput, Failed
from data_prep.common.files import check
from data_prep.common.workers import batches
from data_prep.stores.base import OWN, PAGE, Chunk, Collection, Store, StoreConfig
from data_prep.stores.open import check_target, open_store
from trainer.inference.store_check import NEIGHBOURS, Sample, check_collection
from trainer.inference.text_encoder import TextEncoder

FINGERPRINT, DIM, STATE, SOURCE, MODEL, BEFORE = (
    f"{OWN}{name}" for name in ("model_sha256", "dim", "state", "source", "model", "alias_before")
)
UNFINISHED, WHOLE = "unfinished", "whole"
RECALL = 0.95  # of an exact search, that the store's search must have before an alias moves
ROUNDS = 3  # of copying what was written meanwhile, before it is given up


def reindex(
    config: StoreConfig,
    target: str,
    encoder: TextEncoder,
    *,
    batch: int = 256,
    where: dict[str, Any] | None = None,
    alias: str | None = None,
    recall: float = RECALL,
    watch: Path | None = None,
) -> int:
    """Embeds the chunks of a collection into another one of the same store; returns how many were embedded now.

    Ids, texts, metadata, other vectors and settings are kept; what cannot be is listed before the first text is
    embedded. The target records the model (sha256 of its files) and how it read the texts. Run again, killed or not,
    only chunks that are missing there, or that changed, are embedded, and those that the source no longer has are
    deleted.

    watch: goes on with what is written and deleted meanwhile until this file exists.
    alias: is then pointed to the target, in one step, if the numbers of chunks are equal, a sample is read back as it
    was written, and the store's search finds at least the share `recall` of what an exact one does.

    Raises BadInput for a target that this model did not fill, an alias where the store has none or that is a
    collection's name, and what open_collection refuses; Failed where that check does not pass.
    """
    problems = [f"--batch {batch}: must be 1 or more"] if batch < 1 else []
    if not 0 <= recall <= 1:
        problems.append(f"--recall {recall}: must be 0 to 1")
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
        for what in source.lost(filled):
            say(f"note: not carried over to {target}: {what}")
        copy = Copy(source, filled, encoder, batch, where)
        copy.once()
        filled.finish(like=source)
        if watch is not None:
            _watch(copy, watch)
        _settle(copy, alias)
        _verify(copy, alias, recall)
        filled.describe({STATE: WHOLE})
        _report(copy)
        _switch(store, config.collection, filled, alias)
    return copy.embedded


class Copy:
    """One collection that is made equal to another, but for its vectors."""

    def __init__(
        self, source: Collection, filled: Collection, encoder: TextEncoder, batch: int, where: dict[str, Any] | None
    ):
        self.source, self.filled, self.encoder, self.batch, self.where = source, filled, encoder, batch, where
        self.total = self.embedded = self.removed = 0
        self.changed = 0  # chunks of the last round
        self.seconds = 0.0
        self.written, self.found = Sample(), Sample()

    def once(self) -> int:
        """Writes what is missing or differs and deletes what the source lacks; returns how many chunks that were."""
        began, changed, total = time.monotonic(), 0, self.source.count(self.where)
        pages = batches(self.source.chunks(self.where), self.batch)
        self.total = 0
        for page in _with_progress(pages, self.source.name, total):
            changed += self._write(page)
            self.total += len(page)
        self.embedded += changed
        if self.filled.count() > self.total:
            changed += self._remove()
        self.seconds += time.monotonic() - began
        self.changed = changed
        return changed

    def _write(self, page: list[Chunk]) -> int:
        ids = [chunk.id for chunk in page]
        stored, rest = self.filled.stored(ids), self.source.rest(ids)
        own = self.filled.rest(ids) if rest else {}
        same = {one.id for one in page if _same(one, stored.get(one.id)) and alike(rest.get(one.id), own.get(one.id))}
        missing = [chunk for chunk in page if chunk.id not in same]
        if missing:
            vectors = self.encoder.passages([chunk.text for chunk in missing])
            made = [replace(one, embedding=vector, rest=rest.get(one.id)) for one, vector in zip(missing, vectors)]
            self.filled.upsert(made)
            self.written.add(made)
        self.found.add(chunk for chunk in page if chunk.id in same)
        return len(missing)

    def _remove(self) -> int:
        """Deletes the target's chunks that the source does not have. (One that no longer fits --where stays.)"""
        gone = []
        for page in batches(self.filled.chunks(), PAGE):
            there = self.source.stored([chunk.id for chunk in page])
            gone += [chunk.id for chunk in page if chunk.id not in there]
        self.filled.remove(gone)
        self.removed += len(gone)
        return len(gone)

    def settle(self) -> bool:
        """Repeats until a round finds nothing to do: then both hold the same chunks. Returns False if others write on.

        Equal numbers alone would not tell: a chunk may be written and another one deleted behind the reader.
        """
        for _ in range(ROUNDS):
            if not self.changed and self.source.count(self.where) == self.filled.count():
                return True
            self.once()
        return not self.changed and self.source.count(self.where) == self.filled.count()

    def sample(self) -> list[Chunk]:
        """Returns chunks with the vectors that were written: those of this run, else some that are embedded again."""
        if self.written.chunks:
            return self.written.chunks
        vectors = self.encoder.passages([chunk.text for chunk in self.found.chunks])
        return [replace(chunk, embedding=vector) for chunk, vector in zip(self.found.chunks, vectors)]


def _same(one: Chunk, stored: Chunk | None) -> bool:
    """True for a chunk with the same text and metadata; NaN, which Chroma stores, is equal to NaN."""
    if stored is None or one.text != stored.text:
        return False
    return one.metadata == stored.metadata or json.dumps(one.metadata) == json.dumps(stored.metadata)


def alike(one: Any, other: Any) -> bool:
    """True for equal values of Collection.rest; numbers may differ by rounding, as where a store normalises again."""
    if isinstance(one, float) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-6)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == other


def _watch(copy: Copy, until: Path) -> None:
    """Goes on copying until the file exists. A round without changes is followed by a pause as long as the round."""
    say(f"watching {copy.source.name} until {until} exists")
    while not until.exists():
        began = time.monotonic()
        if changed := copy.once():
            say(f"{copy.filled.name}: {changed:,} chunks were written or deleted meanwhile")
            continue
        pause = max(time.monotonic() - began, 1.0)
        while pause > 0 and not until.exists():
            _pause(min(pause, 1.0))
            pause -= 1.0
    copy.once()


def _settle(copy: Copy, alias: str | None) -> None:
    """Copies what was written meanwhile. Raises Failed if that never ends, or says it where no alias is to be moved."""
    if copy.settle():
        return
    counts = (
        f"{copy.filled.name} holds {copy.filled.count():,} chunks, {copy.source.name} {copy.source.count(copy.where):,}"
    )
    if alias is not None:
        mend = f"others write on ({copy.changed:,} chunks in the last round); the alias stays: pause them and run again"
        raise Failed(f"--target {counts}, and {mend}")
    say(f"note: {counts}: others write on, or chunks no longer fit --where; run again to copy what was written since")


def _pause(seconds: float) -> None:
    time.sleep(seconds)


def _verify(copy: Copy, alias: str | None, least: float) -> None:
    """Says how much of an exact search the store's own finds. Raises Failed if that is too little for an alias."""
    recall = check_collection(copy.filled, copy.source, copy.sample())
    text = f"its search finds {recall:.1%} of the {NEIGHBOURS} nearest of an exact one"
    if recall >= least:
        say(f"{copy.filled.name}: {text}; a sample is as it was written")
    elif alias is None:
        say(f"note: {copy.filled.name}: {text}, less than --recall {least:g}: let its index look at more candidates")
    else:
        mend = "the alias stays; let its index look at more candidates and run again, or lower --recall"
        raise Failed(f"--target {copy.filled.name}: {text}, less than --recall {least:g}; {mend}")


def roll_back(config: StoreConfig, alias: str) -> None:
    """Points an alias back to the collection before reindex moved it. BadInput: there is none, or it is gone."""
    with open_store(config) as store:
        aliases = store.aliases() or {}
        if alias not in aliases:
            raise BadInput(f"--alias {alias}: no such alias; there: {', '.join(sorted(aliases)) or 'none'}")
        now = aliases[alias]
        before = json.loads(store.open(now).about.get(BEFORE, "{}")).get(alias)
        if before is None:
            raise BadInput(
                f"--alias {alias}: points to {now}, and reindex did not move it there from another collection"
            )
        if before not in store.names():
            raise BadInput(f"--alias {alias}: pointed to {before} before, which is not there any more")
        store.swap_alias(alias, before)
        result(f"alias {alias}: points to {before} again, before to {now}")


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


def _report(copy: Copy) -> None:
    encoder, target, total = copy.encoder, copy.filled, copy.total
    if encoder.cut:
        limit = encoder.spec.rules.passage_max_len
        owner = "--max-len" if encoder.config.passage_max_len else "the model folder's limit"
        say(f"note: {encoder.cut:,} texts are longer than {limit} tokens ({owner}): what comes after is not read")
    if copy.removed:
        say(f"{target.name}: {copy.removed:,} chunks were deleted that {copy.source.name} does not have any more")
    speed = f", {copy.embedded / copy.seconds:.0f} per second" if copy.embedded else ""
    result(
        f"{target.name}: {total:,} chunks with vectors of {encoder.size} numbers by {encoder.config.path}: "
        f"{copy.embedded:,} embedded now{speed}, {max(total - copy.embedded, 0):,} were there"
    )


def _switch(store: Store, source: str, filled: Collection, alias: str | None) -> None:
    aliases, target = store.aliases(), filled.name
    if alias is not None:
        before = aliases.get(alias)
        if before not in (None, target):
            earlier = json.loads(filled.about.get(BEFORE, "{}"))
            filled.describe({BEFORE: json.dumps({**earlier, alias: before})})
        store.swap_alias(alias, target)
        result(f"alias {alias}: points to {target}" + (f", before to {before} (--rollback)" if before else ""))
    elif aliases is None:
        say(f"{store.kind} has no aliases: whoever searches {source} goes on doing so until told to open {target}")
    elif source in aliases:
        say(f"{source} is an alias and still points to {aliases[source]}: --alias {source} moves it to {target}")
