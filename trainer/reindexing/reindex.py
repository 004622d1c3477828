"""A collection embedded with a model into a new collection of the same store, or a new vector of the same one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.common.console import result, say
from data_prep.common.errors import BadInput, Failed
from data_prep.common.files import check
from data_prep.stores.base import Collection, Store, StoreConfig
from data_prep.stores.open import check_target, open_store
from trainer.config.sections import ModelConfig
from trainer.inference.reading import as_trained
from trainer.inference.store_record import (
    BEFORE,
    CONTENT,
    DIM,
    FINGERPRINT,
    MAX_LEN,
    MODEL,
    PRECISION,
    PROMPT,
    SOURCE,
    STATE,
    UNFINISHED,
    WHERE,
    WHOLE,
)
from trainer.inference.text_encoder import TextEncoder
from trainer.reindexing.check import NEIGHBOURS, check_collection
from trainer.reindexing.copying import Copy
from trainer.reindexing.others import check_target_is_ours, check_unused, content, say_what_stays
from trainer.reindexing.ranks import Ranks

RECALL = 0.95  # of an exact search, that the store's search must have before an alias moves


def reindex(
    config: StoreConfig,
    target: str | None,
    encoder: TextEncoder,
    *,
    batch: int = 256,
    where: dict[str, Any] | None = None,
    alias: str | None = None,
    recall: float = RECALL,
    watch: Path | None = None,
    into_vector: str | None = None,
    overwrite: bool = False,
) -> int | None:
    """Embeds the chunks of a collection into another one of the same store; returns how many were embedded now.

    Ids, texts, metadata, other vectors and settings are kept; what cannot be is listed before the first text is
    embedded. The target records the model (sha256 of its files) and how it read the texts. Run again, killed or not,
    only chunks that are missing there, or that changed, are embedded, and those that the source no longer has are
    deleted.

    watch: goes on with what is written and deleted meanwhile until this file exists.
    alias: is then pointed to the target, in one step, if the numbers of chunks are equal, a sample is read back as it
    was written, and the store's search finds at least the share `recall` of what an exact one does.
    into_vector: in place of a target, the chunks of the collection itself get a vector of this name.
    overwrite: what others wrote to the target is deleted and overwritten.

    With encoder.runtime it is collective: rank 0 alone reads, checks and returns the number. See Ranks.

    Raises BadInput for a target that this model did not fill, or that others wrote to since, an alias where the store
    has none or that is a collection's name, and what open_collection refuses; Failed where that check does not pass.
    """
    with Ranks(encoder, config, target, into_vector) as ranks:
        return ranks.lead(lambda: _lead(ranks, batch, where, alias, recall, watch, overwrite))


def _lead(
    ranks: Ranks,
    batch: int,
    where: dict[str, Any] | None,
    alias: str | None,
    recall: float,
    watch: Path | None,
    overwrite: bool,
) -> int:
    """reindex() on rank 0."""
    config, target, into_vector, encoder = ranks.config, ranks.target, ranks.into_vector, ranks.encoder
    _check_arguments(config, target, batch, alias, recall, watch, into_vector, overwrite)
    with open_store(config) as store:
        source = store.open(config.collection)
        _check_alias(store, alias, target)
        if not source.count(where):
            raise BadInput(f"--collection {source.name}: no chunk" + (" fits --where" if where else ""))
        ranks.load()
        facts = _facts(config, encoder, where)
        if into_vector is None:
            filled = _target(store, source, target, encoder, facts)
        else:
            filled = _added(store, source, into_vector, encoder, facts)
        ranks.keep_precision(filled)
        trusted = overwrite or not filled.whole  # a vector is added beside what others write, and replaces none of it
        if not trusted:
            check_target_is_ours(store, source, filled, where)
            if watch is not None:
                check_unused(store, filled)
        for what in source.lost(filled):
            say(f"note: not carried over to {target or into_vector}: {what}")
        ranks.fill(filled)
        copy = Copy(source, filled, ranks, batch, where)
        copy.once()
        filled.finish(like=source)
        if watch is not None:
            copy.watch(watch, (lambda: None) if trusted else lambda: check_unused(store, filled))
        settled = copy.settle()
        if filled.whole:
            filled.describe({CONTENT: content(filled)})
        if not settled:
            _say_unsettled(copy, alias)
        filled.finish(like=source)
        _report(copy, encoder)
        _verify(copy, encoder, alias, recall)
        filled.describe({STATE: WHOLE})
        if into_vector is None:
            _switch(store, config.collection, filled, alias)
        else:
            say(f"{filled.name}: --vector-name {into_vector} searches the new vectors; the others are as they were")
    return copy.embedded


def _check_arguments(
    config: StoreConfig, target, batch: int, alias, recall: float, watch, into_vector, overwrite
) -> None:
    """Raises BadInput with every problem of reindex's arguments that shows before the store is opened."""
    problems = [f"--batch {batch}: must be 1 or more"] if batch < 1 else []
    if not 0 <= recall <= 1:
        problems.append(f"--recall {recall}: must be 0 to 1")
    if (target is None) == (into_vector is None):
        problems.append("--target NEW (a collection) or --into-vector NAME (of --collection): name one of them")
    if target == config.collection:
        problems.append(f"--target {target}: is --collection; the vectors of another model need another collection")
    if into_vector == "" or (into_vector is not None and into_vector == config.vector_name):
        problems.append(f"--into-vector {into_vector!r}: must be the name of a new vector")
    if alias is not None and into_vector is not None:
        problems.append(f"--alias {alias}: belongs to --target; no alias can point to a vector of a collection")
    if overwrite and into_vector is not None:
        problems.append("--overwrite-target: belongs to --target; a vector is added beside what others write")
    if watch is not None and watch.exists():
        problems.append(f"--watch {watch}: exists already, so nothing would be watched; delete it, or omit --watch")
    elif watch is not None and not watch.parent.is_dir():
        problems.append(f"--watch {watch}: has no folder {watch.parent}; make it, so that the file can be written")
    check(problems)
    if target is not None:
        check_target(replace(config, collection=target), "--target")


def _say_unsettled(copy: Copy, alias: str | None) -> None:
    """Says that others write on. Raises Failed if an alias is to be moved, or if no round came to its end."""
    name, of = copy.filled.name, copy.source.name
    if not copy.complete:
        raise Failed(f"--target {name}: no round came to its end: others delete from {of}; pause them and run again")
    counts = f"{name} holds {copy.count():,} chunks, {of} {copy.source.count(copy.where):,}"
    such = f", such as {copy.example}" if copy.example else ""
    written = f"others write on ({copy.changed:,} chunks in the last round{such})"
    if alias is not None:
        raise Failed(f"--target {counts}, and {written}; the alias stays: pause them and run again")
    say(f"note: {counts}: {written}; run again to copy what was written since")


def _verify(copy: Copy, encoder: TextEncoder, alias: str | None, least: float) -> None:
    """Says how much of an exact search the store's own finds. Raises Failed if that is too little for an alias."""
    recall = check_collection(copy.filled, copy.source, encoder, copy.sample)
    text = f"its search finds {recall:.1%} of the {NEIGHBOURS} nearest of an exact one"
    if recall >= least:
        say(f"{copy.filled.name}: {text}; a sample is as it was written")
    elif alias is None:
        say(f"note: {copy.filled.name}: {text}, less than --recall {least:g}: let its index look at more candidates")
    else:
        mend = "the alias stays; let its index look at more candidates and run again, or lower --recall"
        raise Failed(f"--target {copy.filled.name}: {text}, less than --recall {least:g}; {mend}")


def roll_back(config: StoreConfig, alias: str) -> None:
    """Points an alias back to the collection before reindex moved it, and says which chunks it does not show any more.

    BadInput: there is none, or it is gone.
    """
    with open_store(config) as store:
        aliases = store.aliases()
        if aliases is None:
            raise BadInput(f"--alias {alias}: {store.kind} has no aliases")
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
        say_what_stays(store, now, before)


def _facts(config: StoreConfig, encoder: TextEncoder, where: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the target's description: all that decides its vectors and its chunks."""
    rules = encoder.spec.rules
    return {
        FINGERPRINT: encoder.fingerprint,
        DIM: encoder.size,
        PROMPT: rules.passage_prompt,
        MAX_LEN: rules.passage_max_len,
        SOURCE: config.collection,
        WHERE: json.dumps(where, sort_keys=True) if where else "",
    }


def _new(facts: dict[str, Any], encoder: TextEncoder) -> dict[str, Any]:
    return {**facts, MODEL: encoder.config.path, PRECISION: encoder.computes_in, STATE: UNFINISHED}


def _target(store: Store, source: Collection, name: str, encoder: TextEncoder, facts: dict[str, Any]) -> Collection:
    """Opens the target, or creates it. Raises BadInput if it belongs to another run."""
    if name not in store.names():
        if name in (store.aliases() or {}):
            raise BadInput(
                f"--target {name}: is an alias; name a new collection, and move the alias with --alias {name}"
            )
        return store.create(name, encoder.size, _new(facts, encoder), cosine=encoder.spec.normalize, like=source)
    if name == (store.aliases() or {}).get(source.name):
        raise BadInput(f"--target {name}: is the collection that --collection {source.name} points to; choose another")
    target = store.open(name, **source.layout)
    _check_owner(f"--target {name}", target.about, facts)
    target.prepare(like=source)
    return target


def _added(store: Store, source: Collection, name: str, encoder: TextEncoder, facts: dict[str, Any]) -> Collection:
    """Adds a vector to the source, or opens it. Raises BadInput if it belongs to another run or cannot be added."""
    added = store.add_vector(source, name, encoder.size, _new(facts, encoder), cosine=encoder.spec.normalize)
    _check_owner(f"--into-vector {name}", added.about, facts)
    return added


def _check_owner(flag: str, recorded: dict[str, Any], facts: dict[str, Any]) -> None:
    """Raises BadInput if the record of a target that was there is missing, or another run's."""
    if FINGERPRINT not in recorded:
        raise BadInput(
            f"{flag}: exists without a record of reindex ({FINGERPRINT} in its metadata), so nothing says "
            "which model filled it; choose a new name, or delete this one first (trainer.search needs no record: "
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
            f"{flag}: belongs to another run of reindex, of the model {model} ({shown}); "
            "choose another name, or delete it first"
        )


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 40 else repr(value)


def _check_alias(store: Store, alias: str | None, target: str | None) -> None:
    if alias is None:
        return
    if store.aliases() is None:
        raise BadInput(
            f"--alias {alias}: {store.kind} has no aliases; leave it out, and open the new collection by its name"
        )
    if alias in [*store.names(), target]:
        raise BadInput(f"--alias {alias}: is a collection's own name; an alias needs a name that no collection has")


def _report(copy: Copy, encoder: TextEncoder) -> None:
    target, total = copy.filled, copy.total
    if copy.cut:
        limit = encoder.spec.rules.passage_max_len
        owner = _owner_of_length(encoder.config)
        say(f"truncated {copy.cut:,} of {copy.total:,} texts to {limit} tokens ({owner})")
    if copy.removed:
        say(f"{target.name}: {copy.removed:,} chunks were deleted that {copy.source.name} does not have any more")
    speed = f", {copy.embedded / copy.seconds:.0f} per second" if copy.embedded else ""
    result(
        f"{target.name}: {total:,} chunks with vectors of {encoder.size} numbers by {encoder.config.path}: "
        f"{copy.embedded:,} embedded now{speed}, {max(total - copy.embedded, 0):,} were there"
    )


def _owner_of_length(model: ModelConfig) -> str:
    if model.passage_max_len is None:
        return "the model folder's limit"
    trained = as_trained(model.model_copy(update={"passage_max_len": None}))
    return "as it was trained" if trained.passage_max_len == model.passage_max_len else "--max-len"


def _switch(store: Store, source: str, filled: Collection, alias: str | None) -> None:
    aliases, target = store.aliases(), filled.name
    if alias is not None:
        before = aliases.get(alias)
        if before not in (None, target):
            earlier = json.loads(filled.about.get(BEFORE, "{}"))
            filled.describe({BEFORE: json.dumps({**earlier, alias: before})})
        store.swap_alias(alias, target)
        result(f"alias {alias}: points to {target}" + (f", before to {before} (--rollback)" if before else ""))
        if before not in (None, target, aliases.get(source, source)):
            say_what_stays(store, before, target)
    elif aliases is None:
        say(f"{store.kind} has no aliases: whoever searches {source} keeps doing so until it opens {target}")
    elif source in aliases:
        say(f"{source} is an alias and still points to {aliases[source]}: --alias {source} moves it to {target}")
