"""Reads models by the lengths of the run that trained them, and two of them alike.

- A model folder states one length for queries and documents; a run's folder also records the run's own two.
- A model and the one that its training began with are both read as that run read them.
- Two models that have nothing to do with each other share the lengths. A prompt or pooling that the other one's folder
  states stays its own: it was trained with it.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from data_prep.common.console import say
from data_prep.common.errors import BadInput
from data_prep.texts.tokenizer_rules import PROMPTS, position_limit, read_object
from trainer.config.loading import parse_section
from trainer.config.sections import ModelConfig
from trainer.model_folder.files import TRAINING_CONFIG, base_folder, fetch
from trainer.model_folder.spec import ModelSpec, read_spec, stated_pooling

LENGTHS = ("query_max_len", "passage_max_len")


def as_trained(model: ModelConfig) -> ModelConfig:
    """Returns the model with the lengths of the run that trained it, where none are asked for."""
    run = _run_of(_folder(model))
    recorded = {name: getattr(run, name) for name in LENGTHS if run and getattr(model, name) is None}
    return model.model_copy(update=recorded)


def read_alike(model: ModelConfig, other: ModelConfig, began: bool = False) -> tuple[ModelConfig, ModelConfig]:
    """Returns both models, to be read alike. began: the training of `model` began with `other`, whatever its files say.

    Of two models one of which was trained from the other, the trained one decides; else `model` does. Raises BadInput.
    """
    if not began and not began_with(model, other):
        if began_with(other, model):
            other, model = read_alike(other, model, began=True)
            return model, other
        model = as_trained(model)
        return model, _like_stranger(other, _spec(model))
    model = as_trained(model)
    return model, _like_before(other, model)


def as_guide(path: str, trained: ModelConfig) -> ModelConfig:
    """Returns a guide (loss.guide) to be read with the lengths of the model in training, and its own prompts and
    pooling. Code that its folder brings runs where that of the model's does. Raises BadInput."""
    return read_alike(trained, ModelConfig(path=path, trust_remote_code=trained.trust_remote_code))[1]


def _folder(model: ModelConfig) -> Path:
    return Path(fetch(model.path, model.trust_remote_code))


def _spec(model: ModelConfig) -> ModelSpec:
    return read_spec(model, _folder(model))


def _like_before(before: ModelConfig, model: ModelConfig) -> ModelConfig:
    """Returns the model that a training began with, read as the trained one."""
    spec, run = _spec(model), _run_of(_folder(model))
    changed = {"pooling": spec.pooling, "normalize": spec.normalize, "bidirectional": spec.bidirectional}
    changed["pool_prompt"] = spec.pool_prompt
    if run and (run.tokenizer or run.append_eos):
        changed["tokenizer"] = spec.path  # as the run changed it
    return before.model_copy(update=asdict(spec.rules) | changed)


def _like_stranger(other: ModelConfig, spec: ModelSpec) -> ModelConfig:
    """Returns another model with the lengths of `spec`, and with its prompts and pooling where it states none."""
    folder = _folder(other)
    limit = position_limit(read_object(base_folder(folder, other.trust_remote_code) / "config.json"))
    changed = {name: min(filter(None, (getattr(spec.rules, name), limit))) for name in LENGTHS}
    if other.pooling is None and stated_pooling(folder) is None:
        changed |= {"pooling": spec.pooling, "pool_prompt": spec.pool_prompt}
    stated = read_object(folder / "config_sentence_transformers.json").get("prompts") or {}
    for name, keys in PROMPTS.items():
        own = _run_of(folder) is not None or any(stated.get(key) for key in keys)
        if getattr(other, name) is None and not own:
            changed[name] = getattr(spec.rules, name)
    return other.model_copy(update=changed)


def _run_of(folder: Path) -> ModelConfig | None:
    """Returns the section `model` of the run that wrote a folder; None for a folder of others."""
    path = folder / TRAINING_CONFIG
    try:
        values = read_object(path)
        if not isinstance(values.get("model"), dict) or "data" not in values:
            return None
        return parse_section("model", values["model"], str(path))
    except BadInput as error:
        say(f"the run's own lengths are not known: {error.problems[0]}")
        return None


def began_with(model: ModelConfig, other: ModelConfig) -> bool:
    """True if the training of `model`, or of a model that it was trained from, began with `other`."""
    wanted = _folder(other).resolve()
    return any(name == other.path or (Path(name).exists() and Path(name).resolve() == wanted) for name in _line(model))


def _line(model: ModelConfig) -> Iterator[str]:
    """Yields the models that a model was trained from, the latest first."""
    folder, known = _folder(model), set()
    while folder.is_dir() and folder.resolve() not in known:
        known.add(folder.resolve())
        base, run = read_object(folder / "adapter_config.json").get("base_model_name_or_path"), _run_of(folder)
        yield from filter(None, (base, run and run.path, run and run.lora.start))
        folder = Path(run.path if run else base or "nowhere")


def facts_of(spec: ModelSpec) -> dict:
    """Returns how a model reads texts, as plain values."""
    bits = {"bits": spec.bits} if spec.bits else {}
    attention = {} if spec.bidirectional is None else {"bidirectional": spec.bidirectional}
    prompt = {} if spec.pool_prompt else {"pool_prompt": False}
    return asdict(spec.rules) | {"pooling": spec.pooling, "normalize": spec.normalize} | prompt | attention | bits


def describe(sides: dict[str, ModelSpec]) -> list[str]:
    """Returns lines that say how the models were read, once if alike; sides: by the name of each."""
    facts = {side: facts_of(spec) for side, spec in sides.items()}
    keys = dict.fromkeys(key for one in facts.values() for key in one)
    unlike = [key for key in keys if len({one.get(key) for one in facts.values()}) > 1]
    if not unlike:
        alike = "" if len(facts) == 1 else "both "
        return [f"{alike}read with {_line_of(next(iter(facts.values())))}"]
    return [
        *(f"{side} read with {_line_of(one)}" for side, one in facts.items()),
        f"read unlike: {', '.join(unlike)}",
    ]


def _line_of(facts: dict) -> str:
    parts = [
        f"{texts} of at most {facts[f'{kind}_max_len']} tokens, "
        + (f"prompt {facts[f'{kind}_prompt']!r}" if facts[f"{kind}_prompt"] else "no prompt")
        for texts, kind in (("queries", "query"), ("documents", "passage"))
    ]
    without = "" if facts.get("pool_prompt", True) else " without the prompt"
    parts.append(f"{facts['pooling']} pooling{without}, {'cosine' if facts['normalize'] else 'inner product'}")
    if "bidirectional" in facts:
        parts[-1] += ", attention in both directions" if facts["bidirectional"] else ", causal attention"
    if "bits" in facts:
        parts[-1] += f", base of {facts['bits']} bits"
    return "; ".join(parts)
