"""Checks the train shards of a run: sources, rows, tokens."""

from pathlib import Path

from data_prep.common.errors import BadInput, nearest
from data_prep.shards.tokens import tokenizer_hash
from trainer.planner.plan import BatchPlan
from trainer.preflight.inputs import Inputs


def check_data(inputs: Inputs) -> BatchPlan:
    """Returns the batch plan. Raises BadInput for unreadable shards, unknown sources, and sources below one batch."""
    config = inputs.config
    inputs.shards.split("train")
    names = [source.name for source in inputs.sources]
    unknown = [name for name in config.sources if name not in names]
    if unknown:
        has = f"{config.data.train} has no such source, but {', '.join(names)}"
        raise BadInput([f"data.train: sources.{name}: {has}.{nearest(name, names)}" for name in unknown])
    return inputs.plan


def check_tokens(inputs: Inputs) -> None:
    """Raises BadInput if the shards hold tokens of another tokenizer, prompt or shorter length than the run's."""
    recorded, spec = inputs.shards.token_facts, inputs.spec
    if recorded is None:
        return
    differences = []
    if tokenizer_hash(Path(spec.path)) != recorded.sha256:
        differences.append(f"the tokenizer of {recorded.model} (the run's is another one, that of {spec.path})")
    old, new = recorded.rules, spec.rules
    for name in ("query_prompt", "passage_prompt"):
        if getattr(old, name) != getattr(new, name):
            differences.append(f"{name} {getattr(old, name)!r} (the run's is {getattr(new, name)!r})")
    for name in ("query_max_len", "passage_max_len"):
        if getattr(old, name) < getattr(new, name):  # a shorter length is served by truncating again
            differences.append(f"{name} {getattr(old, name)} (the run's is longer: {getattr(new, name)})")
    if differences:
        tokens = f"{inputs.config.data.train} holds tokens made with {', '.join(differences)}"
        mend = "shard again with the run's (--tokenizer), or without tokens, or change the run file"
        raise BadInput(f"data.train: {tokens}; {mend}")
