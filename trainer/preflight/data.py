"""Definitions of this subject."""

from pathlib import Path

from data_prep.common.errors import BadInput, nearest
from data_prep.shards.folder import open_shards
from data_prep.shards.tokens import tokenizer_hash
from trainer.config.sections import RunConfig
from trainer.model_folder.spec import ModelSpec
from trainer.planner.from_config import _plan_of


def _check_data(config: RunConfig) -> str:
    shards = open_shards(config.data.train)
    shards.split("train")
    names = [source.name for source in shards.train_sources()]
    unknown = [name for name in config.sources if name not in names]
    if unknown:
        has = f"{config.data.train} has no such source, but {', '.join(names)}"
        raise BadInput([f"data.train: sources.{name}: {has}.{nearest(name, names)}" for name in unknown])
    return _plan_of(config, shards).fingerprint


def _check_tokens(config: RunConfig, spec: ModelSpec) -> None:
    """Whether tokens that shards hold are those that this run would make."""
    made = open_shards(config.data.train).token_facts
    if made is None:
        return
    found = []
    if tokenizer_hash(Path(spec.path)) != made.sha256:
        found.append(f"the tokenizer of {made.model} (the run's is another one, that of {spec.path})")
    for name in ("query_prompt", "passage_prompt"):
        if getattr(made.rules, name) != getattr(spec.rules, name):
            found.append(f"{name} {getattr(made.rules, name)!r} (the run's is {getattr(spec.rules, name)!r})")
    for name in ("query_max_len", "passage_max_len"):
        if getattr(made.rules, name) < getattr(spec.rules, name):  # a shorter one is served by cutting again
            found.append(f"{name} {getattr(made.rules, name)} (the run's is longer: {getattr(spec.rules, name)})")
    if found:
        mend = "shard again with the run's (--tokenizer), or without tokens, or change the run file"
        raise BadInput(f"data.train: {config.data.train} holds tokens made with {', '.join(found)}; {mend}")
