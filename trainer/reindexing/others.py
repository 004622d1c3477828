"""Chunks that others wrote to a target, found before a run changes it and when an alias leaves it.

- A run that comes to its end records a digest of the target's chunks. If they have another one later, others wrote
  there, or a run was killed there.
- Such a target is made equal to the source only where nothing is lost by it, or the user says so.
- A target without a digest is still being filled, by reindex alone, unless an alias points to it. So is one in which an
  update was stopped, in a store that has aliases.
"""

import hashlib
import json
from typing import Any

from data_prep.common.console import say
from data_prep.common.errors import BadInput, Failed
from data_prep.common.workers import batches
from data_prep.stores.base import PAGE, Collection, Store
from trainer.inference.store_record import CONTENT, STATE, WHOLE
from trainer.reindexing.check import same
from trainer.reindexing.copying import alike

SHOWN = 5  # ids


def content(filled: Collection) -> str:
    """Returns a digest of all chunks, their ids, texts, metadata and other vectors: the sum of one of each, which is
    the same in any order."""
    total = 0
    for page in batches(filled.chunks(), PAGE):
        rest = filled.rest([one.id for one in page])
        for one in page:
            written = json.dumps([one.id, one.text, one.metadata, rest.get(one.id)], sort_keys=True)
            total += int.from_bytes(hashlib.sha256(written.encode()).digest())
    return f"{total % 2**256:064x}"


class Ids:
    """Ids that are counted, and the first of them."""

    def __init__(self):
        self.count, self.first = 0, []

    def add(self, ids: list[str]) -> None:
        self.count += len(ids)
        self.first += ids[: SHOWN - len(self.first)]

    def __str__(self) -> str:
        return ", ".join(self.first) + (", …" if self.count > len(self.first) else "")


class Apart:
    """Chunks of one collection that another one lacks (`alone`), or has with another content (`changed`)."""

    def __init__(self, one: Collection, other: Collection, rest: bool = True):
        """rest: what chunks hold besides text and metadata is compared too; both are of the same form then."""
        self.total, self.alone, self.changed = 0, Ids(), Ids()
        for page in batches(one.chunks(), PAGE):
            ids = [chunk.id for chunk in page]
            there, its = other.stored(ids), other.rest(ids) if rest else {}
            own = one.rest(ids) if its else {}
            self.total += len(page)
            self.alone.add([one for one in ids if one not in there])
            self.changed.add(
                [
                    chunk.id
                    for chunk in page
                    if chunk.id in there
                    and not (same(chunk, there[chunk.id]) and alike(its.get(chunk.id), own.get(chunk.id)))
                ]
            )


def check_target_is_ours(store: Store, source: Collection, filled: Collection, where: dict[str, Any] | None) -> None:
    """Raises BadInput if others wrote to the target what a run would delete, overwrite or write again."""
    about, aliases, of = filled.about, aliases_of(store, filled), source.name
    whole, left = about.get(STATE) == WHOLE, about.get(CONTENT)
    is_known = whole and left is not None  # else a run was stopped there, or one of an earlier version filled it
    is_new = not whole and left is None
    if not aliases and (is_new or not (is_known or store.aliases() is None)):
        return
    if content(filled) == left:
        return
    apart, acts = Apart(filled, source), []
    if apart.alone.count:
        acts.append(f"delete {apart.alone.count:,} chunks that {of} does not have ({apart.alone})")
    if apart.changed.count:
        acts.append(f"overwrite {apart.changed.count:,} chunks that {of} has otherwise ({apart.changed})")
    missing = source.count(where) - (apart.total - apart.alone.count)
    if is_known and not acts and missing > 0:  # else a run may not have written them yet
        acts.append(f"write again {missing:,} chunks that were deleted there")
    if acts:
        named = f" (alias {', '.join(aliases)})" if aliases else ""
        why = "is not as reindex left it: others wrote to it"
        if not whole:
            why += ", or a run was stopped there"
        elif not is_known:
            why = "may hold what others wrote: an earlier version of reindex kept no record of what it left there"
        raise BadInput(
            f"--target {filled.name}{named}: {why}. This run would {' and '.join(acts)}. A "
            "target that is in use is not filled again: choose another name, or let --overwrite-target make it equal "
            f"to {of}"
        )


def check_unused(store: Store, filled: Collection) -> None:
    """Raises BadInput if an alias points to a target that is watched: others may write there through it."""
    if aliases := aliases_of(store, filled):
        raise BadInput(
            f"--watch: the alias {', '.join(aliases)} points to {filled.name}, and what is written through it would be "
            "overwritten; run without --watch, or with --overwrite-target if nobody writes there"
        )


def aliases_of(store: Store, filled: Collection) -> list[str]:
    """Returns the aliases that point to a collection, sorted."""
    return sorted(alias for alias, name in (store.aliases() or {}).items() if name == filled.name)


def say_what_stays(store: Store, name: str, other: str) -> None:
    """Says which chunks an alias does not show any more since it points to `other`, and no longer to `name`."""
    try:
        left = store.open(name)
        apart = Apart(left, store.open(other, **left.layout), rest=False)
    except (BadInput, Failed) as error:  # the alias has moved, so the command has not failed
        say(f"note: what {name} has and {other} does not could not be counted: {error}")
        return
    for ids, what in ((apart.alone, f"that {other} does not have"), (apart.changed, f"that {other} has otherwise")):
        if ids.count:
            say(f"note: {name} keeps {ids.count:,} chunks {what}: {ids}")
