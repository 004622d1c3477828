"""The spec of a model folder: pooling, normalisation, prompts, lengths, remote code. No torch."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from data_prep.common.errors import BadInput, collect
from data_prep.common.files import check
from data_prep.common.paths import nearest_beside
from data_prep.texts.prompts import OwnPrompts
from data_prep.texts.tokenizer_rules import PROMPTS, TextRules, read_json, read_object, read_text_rules
from trainer.config.sections import FreezeConfig, ModelConfig
from trainer.model_folder.dense import DenseSpec, read_dense, shape_of
from trainer.model_folder.families import FAMILIES, Family
from trainer.model_folder.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, base_folder, dense_paths, read_modules

POOLINGS = {  # ours -> sentence-transformers' key in 1_Pooling/config.json
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
}
_NEW_NAMES = {"mean": "mean", "cls": "cls", "lasttoken": "last", "last": "last", "weightedmean": "weighted_mean"}
TRUST = "set model.trust_remote_code=true (commands: --trust-remote-code) only if you have read it"


@dataclass(frozen=True)
class ModelSpec:
    """Everything that decides how texts become embeddings."""

    path: str
    base: str  # folder of the transformer's weights; for an adapter folder another one than `path`
    pooling: str
    normalize: bool
    rules: TextRules  # prompts and lengths
    pool_prompt: bool = True  # False: embeddings are pooled without the tokens of the prompt
    own_prompts: OwnPrompts = field(default_factory=OwnPrompts)  # of sources and rows, in training
    named_prompts: dict[str, str] = field(default_factory=dict)  # the folder's further prompts, for whoever names them
    dense: tuple[DenseSpec, ...] = ()  # layers between pooling and normalisation
    bidirectional: bool | None = None  # a decoder's tokens also see later ones; None: an encoder, where they always do
    bits: int | None = None  # of the quantised base; None: not quantised
    own_code: bool = False  # the folder's own code is run as the transformer
    fp32_base: bool = False  # frozen weights stay fp32: what reads them is not known, or not exact with bf16
    notes: list[str] = field(default_factory=list)  # lines to print once: what was chosen where nothing was stated

    @property
    def is_adapter(self) -> bool:
        return self.base != self.path

    def of_source(self, source: str) -> "ModelSpec":
        """Returns the spec with the prompts of one source, by which its own evaluation set is read."""
        query, passage = self.own_prompts.of_source(self.rules, source)
        rules = replace(self.rules, query_prompt=query, passage_prompt=passage)
        return self if rules == self.rules else replace(self, rules=rules)


def describe_lengths(asked: ModelConfig, rules: TextRules) -> str:
    """Returns both maximum lengths, each with its owner: a key of the run file, or the model folder."""
    sides = {"queries": "query_max_len", "passages": "passage_max_len"}
    owners = {side: f"model.{name}" if getattr(asked, name) else "the model folder" for side, name in sides.items()}
    return ", ".join(f"{side} to {getattr(rules, sides[side])} tokens ({owner})" for side, owner in owners.items())


def read_spec(
    config: ModelConfig,
    folder: str | Path,
    base: str | Path | None = None,
    weights: bool = True,
    own_prompts: OwnPrompts | None = None,
) -> ModelSpec:
    """Joins what the run file asks with what the folder says. Raises BadInput with every problem: not a model folder,
    remote code, no stated pooling (there is no default: a wrong one is a large and silent loss), lengths that the model
    cannot hold. base: the base of an adapter folder, if it moved. weights: False where they may be missing.
    own_prompts: of the run's sources and rows."""
    folder = Path(folder)
    base = Path(base) if base else base_folder(folder, config.trust_remote_code)
    check(_folder_problems(config, folder, base, weights))
    problems = []
    settings = read_json(base / "config.json")
    own_code = config.trust_remote_code and "AutoModel" in settings.get("auto_map", {})
    family = None if own_code else FAMILIES.get(settings["model_type"])
    notes: list[str] = []
    modules = read_modules(folder)
    stated = stated_pooling(folder, modules)
    stated, with_prompt = (stated.how, stated.prompt) if stated else (None, True)
    pooling = config.pooling or stated
    if pooling is None:
        raise BadInput(
            f"model.pooling: {folder} does not say how its tokens are pooled (no modules.json with a pooling folder); "
            f"set model.pooling to {', '.join(POOLINGS)}"
        )
    if stated and stated != pooling:
        notes.append(f"pooling: the run file asks for {pooling}, the model folder was trained with {stated}")
    pool_prompt = with_prompt if config.pool_prompt is None else config.pool_prompt
    if stated and pool_prompt != with_prompt:
        asked, trained = ("with" if each else "without" for each in (pool_prompt, with_prompt))
        notes.append(f"pool_prompt: pooled {asked} the prompt's tokens, the model folder was trained {trained} them")
    if "auto_map" in settings and not config.trust_remote_code:
        notes.append(f"the folder's own code is not run: loaded as the family {settings['model_type']}")
    if (folder / "training_args.bin").is_file():
        notes.append(
            "training_args.bin is a pickle and is not read; docs/reference/migrate.md names its arguments here"
        )
    try:
        rules, chosen = read_text_rules(folder, config, "model.{}".format, base)
    except BadInput as error:
        problems += error.problems
    dense = collect(problems, _dense, config, folder, settings, notes, weights)
    problems += _own_code_problems(config) if own_code else _freeze_problems(config, folder, settings, family)
    if config.base_dtype == "bf16" and family and family.fp32_base:
        problems.append(f"model.base_dtype: bf16 is not exact to 1e-5 for a {settings['model_type']}; leave it out")
    problems += _start_problems(config) if config.lora.start else []
    check(problems)
    return ModelSpec(
        path=str(folder),
        base=str(base),
        pooling=pooling,
        normalize=_normalize(config, folder, modules, notes),
        rules=rules,
        pool_prompt=pool_prompt,
        own_prompts=own_prompts or OwnPrompts(),
        named_prompts=_named_prompts(folder),
        dense=dense,
        bidirectional=_bidirectional(config, folder, settings, family),
        bits=config.bits or _stated_bits(folder),
        own_code=own_code,
        fp32_base=own_code or (family is not None and family.fp32_base),
        notes=[*notes, *chosen],
    )


def _folder_problems(config: ModelConfig, folder: Path, base: Path, weights: bool) -> list[str]:
    if not folder.is_dir():
        mend = nearest_beside(folder) or " Name a model folder, or a hub id such as org/name."
        return [f"model.path: {folder} is not a folder.{mend}"]
    if base != folder and not (base / "config.json").is_file():
        return [
            f"model.path: {folder} is an adapter of {base}, which is no model folder here; put it there, or merge: "
            f"python -m trainer.merge --base_model_path BASE --lora_adapter_path {folder / ADAPTER_WEIGHTS}"
        ]
    if not (base / "config.json").is_file():
        hint = f"; did you mean {folder / 'final'}?" if (folder / "final" / "config.json").is_file() else ""
        return [f"model.path: {folder} is not a model folder: it has no config.json{hint}"]
    problems = []
    for path in dict.fromkeys((folder, base)):
        if weights and not any(path.glob("*.safetensors")):
            mend = " (pickled weights are not loaded: convert them to safetensors)" if any(path.glob("*.bin")) else ""
            problems.append(f"model.path: {path} holds no *.safetensors weights{mend}")
    names = ("tokenizer.json", "vocab.txt", "tokenizer.model", "vocab.json", "spiece.model")
    if not config.tokenizer and not any((folder / name).is_file() for name in names):
        problems.append(f"model.path: {folder} holds no tokenizer (tokenizer.json); name one in model.tokenizer")
    settings = read_json(base / "config.json")
    if not isinstance(settings, dict) or "model_type" not in settings:
        problems.append(f"model.path: {base}/config.json has no model_type")
    elif "auto_map" in settings and not config.trust_remote_code:
        problems += _remote_code_problems(config, base, settings)
    return problems


def _remote_code_problems(config: ModelConfig, base: Path, settings: dict) -> list[str]:
    """Returns why a folder needs its own code. A known family does not, if its attention is stated."""
    family, kind = FAMILIES.get(settings["model_type"]), settings["model_type"]
    if family is None or settings.get("position_embedding_type", "absolute") != "absolute":
        return [f"model.path: {base} brings its own code (auto_map in config.json), which is not run; {TRUST}"]
    if family.causal and config.bidirectional is None and "is_causal" not in settings:
        return [
            f"model.path: {base} brings its own code (auto_map in config.json), which is not run; its family {kind} is "
            "supported without it, but that code may let tokens see those behind them: set model.bidirectional to true "
            "or false, as the model's description says"
        ]
    return []


def _own_code_problems(config: ModelConfig) -> list[str]:
    cause = "the folder's own code is run, whose"
    problems = [f"model.freeze: {cause} parts are not known; leave it out"] if config.freeze != FreezeConfig() else []
    if config.bidirectional is not None:
        problems.append(f"model.bidirectional: {cause} attention is its own; leave it out")
    if config.base_dtype == "bf16":
        problems.append(f"model.base_dtype: {cause} layers may need fp32 weights; leave it out")
    return problems


def _freeze_problems(config: ModelConfig, folder: Path, settings: dict, family: Family | None) -> list[str]:
    if config.freeze == FreezeConfig():
        return []
    if family is None:
        return [f"model.freeze: which parts of a {settings['model_type']} are what is not known; leave it out"]
    names = ("num_hidden_layers", "num_layers", "n_layers")
    blocks = next((settings[name] for name in names if name in settings), 0)
    if config.freeze.layers >= blocks:
        return [f"model.freeze.layers: {config.freeze.layers}, but {folder} has {blocks}, and one must be trained"]
    return []


def _start_problems(config: ModelConfig) -> list[str]:
    """Returns the problems of the adapter to start from, and its conflicts with the run file."""
    start, asked = Path(config.lora.start), config.lora
    if not (start / ADAPTER_CONFIG).is_file() or not (start / ADAPTER_WEIGHTS).is_file():
        return [f"model.lora.start: {start} is no adapter folder ({ADAPTER_CONFIG} and {ADAPTER_WEIGHTS})"]
    values = read_object(start / ADAPTER_CONFIG)
    if values.get("peft_type") != "LORA":
        return [f"model.lora.start: {start} is an adapter of the kind {values.get('peft_type')}, not LORA"]
    if values.get("use_dora") and config.bits == 8:
        return [f"model.lora.start: {start} is a DoRA, which does not go with 8 bits (docs/reference/modes.md)"]
    names = {"r": "r", "alpha": "lora_alpha", "rslora": "use_rslora", "dora": "use_dora", "targets": "target_modules"}
    problems = []
    for ours, theirs in names.items():
        one, other = getattr(asked, ours), values.get(theirs)
        if isinstance(one, list) and isinstance(other, list):
            one, other = sorted(one), sorted(other)
        if ours in asked.model_fields_set and one != other:
            problems.append(f"model.lora.{ours}: {one}, but the adapter {start} has {other}; leave it out")
    return problems


def _bidirectional(config: ModelConfig, folder: Path, settings: dict, family: Family | None) -> bool | None:
    if family is None or not family.causal:
        if config.bidirectional is not None:
            kind = settings["model_type"]
            raise BadInput(f"model.bidirectional: only a decoder has the choice; {folder} is of the family {kind}")
        return None
    if config.bidirectional is not None:
        return config.bidirectional
    stated = read_object(folder / "sentence_bert_config.json").get("config_kwargs", {})  # of an adapter folder
    return not {**settings, **stated}.get("is_causal", True)


def _stated_bits(folder: Path) -> int | None:
    """Returns the bits of an adapter's base during its training; None: not quantised."""
    arguments = read_object(folder / "sentence_bert_config.json").get("model_kwargs", {})
    asked = arguments.get("quantization_config", {})
    return 4 if asked.get("load_in_4bit") else 8 if asked.get("load_in_8bit") else None


def _named_prompts(folder: Path) -> dict[str, str]:
    """Returns the prompts of a folder that are neither its queries' nor its documents'."""
    stated = read_object(folder / "config_sentence_transformers.json").get("prompts") or {}
    ours = {name for names in PROMPTS.values() for name in names}
    return {name: text for name, text in stated.items() if name not in ours and isinstance(text, str)}


class Pooling(NamedTuple):
    """The pooling that a folder states."""

    how: str  # one of POOLINGS
    prompt: bool  # the prompt's tokens are pooled too


def stated_pooling(folder: Path, modules: list[dict] | None = None) -> Pooling | None:
    """Returns the pooling that a folder states, None if it states none. modules: of read_modules, if they were read."""
    for module in read_modules(folder) if modules is None else modules:
        if module["kind"] == "Pooling":
            values = read_object(folder / module["path"] / "config.json")
            if "pooling_mode" in values:  # sentence-transformers 5.x and later name it
                mode = values["pooling_mode"]
                chosen = [_NEW_NAMES.get(name) for name in ([mode] if isinstance(mode, str) else mode)]
            else:
                on = [key for key, value in values.items() if key.startswith("pooling_mode_") and value is True]
                chosen = [next((ours for ours, key in POOLINGS.items() if key == name), None) for name in on]
            if len(chosen) != 1 or chosen[0] is None:
                raise BadInput(f"{folder}: its pooling {values} is none of {', '.join(POOLINGS)}; not supported")
            return Pooling(chosen[0], values.get("include_prompt", True) is not False)
    return None


def _normalize(config: ModelConfig, folder: Path, modules: list[dict], notes: list[str]) -> bool:
    if config.normalize is not None:
        return config.normalize
    if not modules:
        notes.append("normalize: true (cosine similarity; the folder does not say)")
        return True
    return any(module["kind"] == "Normalize" for module in modules)


def hidden_size(settings: dict) -> int | None:
    """Returns the hidden size of a transformer's config.json, by the names of T5, DistilBERT and Nomic too."""
    return next((settings[name] for name in ("hidden_size", "d_model", "dim", "n_embd") if name in settings), None)


def _dense(config: ModelConfig, folder: Path, settings: dict, notes: list[str], weights: bool) -> tuple[DenseSpec, ...]:
    layers = read_dense(folder, dense_paths(folder), hidden_size(settings), weights)
    if layers and config.finetune != "full":
        notes.append(
            f"the dense layers behind the pooling ({shape_of(layers)}) stay as they are: adapters train the transformer"
        )
    return layers
