"""Checks the train shards of a run: sources, rows, tokens."""

from pathlib import Path

from data_prep.common.errors import BadInput, nearest
from data_prep.shards.tokens import TokenFacts, tokenizer_hash
from data_prep.texts.prompts import SIDES
from trainer.model_folder.spec import ModelSpec
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
    differences: list[str] = []
    if tokenizer_hash(Path(spec.path)) != recorded.sha256:
        differences.append(f"the tokenizer of {recorded.model} (the run's is another one, that of {spec.path})")
    old, new = recorded.rules, spec.rules
    differences += _prompts_apart(recorded, spec, [source.name for source in inputs.sources])
    for name in ("query_max_len", "passage_max_len"):
        if getattr(old, name) < getattr(new, name):  # a shorter length is served by truncating again
            differences.append(f"{name} {getattr(old, name)} (the run's is longer: {getattr(new, name)})")
    if differences:
        tokens = f"{inputs.config.data.train} holds tokens made with {', '.join(differences)}"
        mend = "shard again with the run's (--tokenizer), or without tokens, or change the run file"
        raise BadInput(f"data.train: {tokens}; {mend}")


def _prompts_apart(recorded: TokenFacts, spec: ModelSpec, sources: list[str]) -> list[str]:
    """Returns the prompts of the rows' tokens that are not the run's, each under the key that decides it."""
    apart: dict[str, tuple[str | None, str | None]] = {}
    old, new = recorded.own_prompts, spec.own_prompts
    for i, side in enumerate(SIDES):
        for source in sources:
            of_source = source in getattr(old, side) or source in getattr(new, side)
            key = f"sources.{source}.{side}_prompt" if of_source else f"{side}_prompt"
            apart[key] = old.of_source(recorded.rules, source)[i], new.of_source(spec.rules, source)[i]
        apart[f"row_{side}_prompt"] = getattr(old, f"row_{side}"), getattr(new, f"row_{side}")
    return [f"{key} {one!r} (the run's is {other!r})" for key, (one, other) in apart.items() if one != other]
