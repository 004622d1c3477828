"""Comparison of ranks before a run: run file, data, model, code and library versions must be the same."""

import hashlib
import json
from pathlib import Path

from data_prep.common.errors import BadInput
from trainer.config.sections import RunConfig
from trainer.distributed.collectives import World
from trainer.run_dir.record import versions

MENDS = {
    "run file": "copy one run file to every node, and give every node the same overrides",
    "data": "copy one shard folder to every node, or put it on a file system they share",
    "model": "copy one model folder to every node, or put it on a file system they share",
    "code": "install the same embedfleet on every node",
    "library version": "install from the same constraints file on every node",
}


class Disagreement(BadInput):
    """Raised by every rank, with the same words."""

    on_every_rank = True


def facts_of(config: RunConfig, fingerprint: str | None) -> dict[str, str]:
    """Returns short texts that must be the same on every rank. fingerprint: of the train shards, None where they cannot
    be opened: whatever cannot be read is reported later, by its own check."""
    root = Path(__file__).resolve().parents[2]
    sources = sorted(path for package in ("trainer", "data_prep") for path in (root / package).rglob("*.py"))
    facts = {
        "run file": _digest(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()),
        "code": _digest(b"".join(path.read_bytes() for path in sources)),
        "library version": json.dumps(versions()),
        "data": fingerprint or "unreadable",
    }
    # weights are rank 0's everywhere; these are every rank's own
    guides = [loss.guide.model for loss in config.losses.values() if loss.guide]
    folders = [folder for path in (config.model.path, *guides) if (folder := Path(path)).is_dir()]
    files = [path for folder in folders for path in sorted(folder.rglob("*.json")) if path.is_file()]
    if folders:
        facts["model"] = _digest(b"".join(path.read_bytes() for path in files))
    return facts


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def check_agreement(world: World, mine: dict[str, str]) -> None:
    """Raises Disagreement on every rank, naming the ranks that differ from rank 0 and in what. Collective."""
    first, *others = world.gather_objects(mine)
    problems = []
    for fact, mend in MENDS.items():
        differing = [rank for rank, facts in enumerate(others, 1) if facts.get(fact) != first.get(fact)]
        if differing:
            named = ", ".join(map(str, differing))
            detail = _detail(first.get(fact), others[differing[0] - 1].get(fact), differing[0])
            problems.append(f"rank(s) {named} have another {fact} than rank 0 ({detail}): {mend}")
    if problems:
        raise Disagreement([*problems, "nothing was trained"])


def _detail(first: str | None, other: str | None, rank: int) -> str:
    """Describes the difference; of library versions only the packages that differ."""
    if first and other and first.startswith("{"):
        one, two = json.loads(first), json.loads(other)
        names = sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
        return ", ".join(f"{name} {one.get(name)} on rank 0, {two.get(name)} on rank {rank}" for name in names)
    return f"{first} on rank 0, {other} on rank {rank}"
