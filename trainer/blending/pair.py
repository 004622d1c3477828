"""Two model folders that belong together: a base, and what was trained from it. Others are refused with the reasons."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.common.console import say
from data_prep.common.errors import BadInput
from data_prep.common.files import check
from data_prep.texts.tokenizer_rules import PROMPTS, read_object
from trainer.config.sections import ModelConfig
from trainer.inference.probe import probe_texts
from trainer.inference.reading import as_trained, began_with, facts_of, read_alike
from trainer.model.adapters import check_base_of, recorded_base
from trainer.model.build import read_settings
from trainer.model.tokenizer import load_tokenizer
from trainer.model_folder.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, fetch
from trainer.model_folder.spec import ModelSpec, read_spec, stated_pooling

# Parts of config.json that no embedding depends on: where a folder came from, how it was trained, other tasks' heads.
_FREE = (
    "name_or_path", "version", "commit_hash", "dtype", "architectures", "use_cache", "auto_map", "checkpointing",
    "problem_type", "label", "classifier", "initializer", "dropout", "token_id", "tie_word", "output_", "return_dict",
    "attn_implementation", "task_specific", "finetuning_task", "chunk_size", "is_causal", "quantization",
)  # fmt: skip
FLAGS = {"query_prompt": "--query-prompt", "passage_prompt": "--passage-prompt", "pooling": "--pooling"}


@dataclass(frozen=True)
class Pair:
    """A base and a tuned model: two whole models of one shape, or a base and an adapter of it."""

    base: Path  # folder
    base_name: str  # as it was given: folder or hub id
    base_config: ModelConfig
    base_spec: ModelSpec | None  # None: of an adapter, whose spec names the base
    tuned: Path  # folder
    config: ModelConfig  # of the tuned model, as it is read
    spec: ModelSpec  # of the tuned model, and so of all that lie between
    tokenizer: Any  # unused: one that was used carries the length it cuts at

    @property
    def is_adapter(self) -> bool:
        return self.base_spec is None


def open_pair(
    base: ModelConfig, tuned: ModelConfig, tell: Callable[[str], None] = say, flags: Mapping[str, str] = FLAGS
) -> Pair:
    """Reads both folders. Raises BadInput with every reason why there is nothing between them. tell: gets a line where
    the base is not read as its own folder says. flags: of the command, which say how both are read."""
    base_folder, folder = (Path(fetch(model.path, model.trust_remote_code)) for model in (base, tuned))
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    check(_wrong_kinds(base_folder, folder, is_adapter))
    if is_adapter:
        return _with_adapter(base, tuned, base_folder, folder, flags)
    return _of_whole(base, tuned, base_folder, folder, tell, flags)


def _wrong_kinds(base: Path, tuned: Path, is_adapter: bool) -> list[str]:
    if (base / ADAPTER_CONFIG).is_file():
        merge = f"python -m trainer.merge --base_model_path … --lora_adapter_path {base / ADAPTER_WEIGHTS}"
        return [f"BASE: {base} is an adapter; merge it ({merge}), and TUNED as well, and blend the merged models"]
    if base.is_dir() and base.resolve() == tuned.resolve():
        return [f"TUNED: {tuned} is BASE itself: nothing lies between"]
    whole = {} if is_adapter else {"BASE": base, "TUNED": tuned}
    return [
        f"{name}: {folder} holds quantised weights (quantization_config in config.json), and nothing lies between two "
        "of those; only an adapter of a quantised base can be blended, by its scale"
        for name, folder in whole.items()
        if read_object(folder / "config.json").get("quantization_config")
    ]


def _with_adapter(
    base: ModelConfig, tuned: ModelConfig, base_folder: Path, folder: Path, flags: Mapping[str, str]
) -> Pair:
    described = folder if (folder / "modules.json").is_file() else base_folder  # peft alone writes no such files
    config = as_trained(tuned).model_copy(update={"path": str(described)})
    spec = replace(read_spec(config, described, base_folder), path=str(folder))
    check_base_of(folder, base_folder)
    tokenizer = load_tokenizer(config, str(described))
    if recorded_base(folder) is None and stated_pooling(base_folder) is not None:
        rules = {f"{side}_max_len": getattr(spec.rules, f"{side}_max_len") for side in ("query", "passage")}
        own = base.model_copy(update=rules)
        read = facts_of(read_spec(own, base_folder)), facts_of(spec)
        check([*_read_unlike(*read, flags), *_other_tokens(load_tokenizer(own, str(base_folder)), tokenizer)])
    return Pair(base_folder, base.path, base, None, folder, config, spec, tokenizer)


def _of_whole(
    base: ModelConfig, tuned: ModelConfig, base_folder: Path, folder: Path, tell: Callable[[str], None],
    flags: Mapping[str, str],
) -> Pair:  # fmt: skip
    if began_with(base, tuned) and not began_with(tuned, base):
        raise BadInput(f"BASE: {base.path} was trained from TUNED, {tuned.path}; name the model before training first")
    config = as_trained(tuned)
    spec = read_spec(config, folder)
    base_config = _base_as_read(base, tuned, base_folder, spec, tell)
    base_spec = read_spec(base_config, base_folder)
    tokenizer = load_tokenizer(config, str(folder))
    problems = _read_unlike(facts_of(base_spec), facts_of(spec), flags)
    problems += _other_shape((base_spec, base_config), (spec, config))
    problems += _other_tokens(load_tokenizer(base_config, str(base_folder)), tokenizer)
    check(problems)
    return Pair(base_folder, base.path, base_config, base_spec, folder, config, spec, tokenizer)


def _base_as_read(
    base: ModelConfig, tuned: ModelConfig, folder: Path, spec: ModelSpec, tell: Callable[[str], None]
) -> ModelConfig:
    """Returns the base as the run read it whose training began with it; another base as its own folder says, or like
    the tuned model where that says nothing of embeddings."""
    _, alike = read_alike(tuned, base)
    if began_with(tuned, base):
        own = stated_pooling(folder) and facts_of(read_spec(base, folder))
        unlike = [key for key in ("pooling", "normalize", *PROMPTS) if own and own[key] != facts_of(spec)[key]]
        if unlike:
            tell(f"{base.path} is read as in the training of {tuned.path}, not as it says itself ({', '.join(unlike)})")
        return alike
    if stated_pooling(folder) is None:
        return alike.model_copy(update={"normalize": spec.normalize, "bidirectional": spec.bidirectional})
    return alike.model_copy(update={name: getattr(base, name) for name in PROMPTS})


def _read_unlike(base: dict, tuned: dict, flags: Mapping[str, str]) -> list[str]:
    """base, tuned: of facts_of."""
    problems = []
    for key in ("pooling", "normalize", "bidirectional", *PROMPTS):
        if base.get(key) != tuned.get(key):
            mend = f"; {flags[key]} says how both are read" if key in flags else ""
            problems.append(f"{key}: BASE has {base.get(key)!r}, TUNED has {tuned.get(key)!r}{mend}")
    return problems


def _other_shape(base: tuple[ModelSpec, ModelConfig], tuned: tuple[ModelSpec, ModelConfig]) -> list[str]:
    one, other = (read_settings(spec.path, spec, config)[0].to_dict() for spec, config in (base, tuned))
    keys = sorted(key for key in {*one, *other} if not any(part in key for part in _FREE))
    problems = [
        f"config.json, {key}: BASE has {json.dumps(one.get(key))}, TUNED has {json.dumps(other.get(key))}"
        for key in keys
        if one.get(key) != other.get(key)
    ]
    shapes = [
        [(layer.inputs, layer.outputs, layer.bias, layer.activation.rpartition(".")[2]) for layer in spec.dense]
        for spec, _ in (base, tuned)
    ]
    if shapes[0] != shapes[1]:
        problems.append(f"dense layers (in, out, bias, activation): BASE has {shapes[0]}, TUNED has {shapes[1]}")
    return problems


def _other_tokens(base, tuned) -> list[str]:
    one, other = base.get_vocab(), tuned.get_vocab()
    if one != other:
        unlike = sorted(token for token in {*one, *other} if one.get(token) != other.get(token))
        shown = ", ".join(map(repr, unlike[:3]))
        return [f"vocabulary: {len(unlike):,} tokens have another id or are on one side only, among them {shown}"]
    for text in probe_texts(base):
        ids = [tokenizer(text)["input_ids"] for tokenizer in (base, tuned)]
        if ids[0] != ids[1]:
            return [f"tokenizer: BASE reads {text!r} as {len(ids[0])} tokens, TUNED as {len(ids[1])} others"]
    return []
