"""What a model folder says about itself: pooling, normalisation, prompts, length, remote code. Never imports torch."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.problems import BadInput
from trainer.config import ModelConfig

POOLINGS = {  # ours -> sentence-transformers' key in 1_Pooling/config.json
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
}
_NEW_NAMES = {"mean": "mean", "cls": "cls", "lasttoken": "last", "last": "last"}


@dataclass(frozen=True)
class ModelSpec:
    """How texts become embeddings. Lengths are tokens, prompt and special tokens included."""

    path: str
    pooling: str
    normalize: bool
    query_prompt: str
    passage_prompt: str
    query_max_len: int
    passage_max_len: int
    notes: list[str] = field(default_factory=list)  # lines to say once: what was chosen for want of a statement


def is_hub_id(path: str) -> bool:
    return not Path(path).exists() and path.count("/") <= 1 and not path.startswith((".", "/", "~"))


def fetch(path: str, with_code: bool = False) -> str:
    """The local folder of a model: `path` itself, or the hub snapshot of an id (downloaded once, then cached)."""
    if Path(path).exists() or not is_hub_id(path):
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*/config.json", *(["*.py"] if with_code else [])]
    try:
        return snapshot_download(path, allow_patterns=patterns)
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(
            f"model.path: {path!r} is neither a folder here nor a model the hub gave us ({reason})"
        ) from None


def read_spec(config: ModelConfig, folder: str | Path) -> ModelSpec:
    """Joins what the run file asks with what the folder says.

    Raises BadInput with every problem: not a model folder, remote code, no statement of the pooling, lengths that the
    model cannot hold. There is no default pooling: a wrong one is a large and silent loss.
    """
    folder = Path(folder)
    problems = _folder_problems(config, folder)
    if problems:
        raise BadInput(problems)
    settings = read_json(folder / "config.json")
    notes: list[str] = []
    modules = _modules(folder)
    stated = _stated_pooling(folder, modules)
    pooling = config.pooling or stated
    if pooling is None:
        raise BadInput(
            f"model.pooling: {folder} does not say how its tokens are pooled (no modules.json with a pooling folder); "
            "set model.pooling to mean, cls or last"
        )
    if stated and stated != pooling:
        notes.append(f"pooling: the run file asks for {pooling}, the model folder was trained with {stated}")
    limit = _position_limit(settings)
    length = _stated_length(folder) or limit
    if length is None and None in (config.query_max_len, config.passage_max_len):
        raise BadInput(f"model.query_max_len and model.passage_max_len: {folder} states no maximum length; set both")
    for name in ("query_max_len", "passage_max_len"):
        asked = getattr(config, name)
        if asked and limit and asked > limit:
            problems.append(f"model.{name}: {asked} tokens, but the model has {limit} positions")
        if asked is None and not _stated_length(folder):
            notes.append(f"{name}: {length} tokens (the model's positions; the folder states no shorter length)")
    prompts = _prompts(folder)
    if problems:
        raise BadInput(problems)
    return ModelSpec(
        path=str(folder),
        pooling=pooling,
        normalize=_normalize(config, folder, modules, notes),
        query_prompt=_prompt(config.query_prompt, prompts, ("query",)),
        passage_prompt=_prompt(config.passage_prompt, prompts, ("document", "passage", "corpus")),
        query_max_len=config.query_max_len or length,
        passage_max_len=config.passage_max_len or length,
        notes=notes,
    )


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not readable JSON ({error})") from None


def _folder_problems(config: ModelConfig, folder: Path) -> list[str]:
    if not folder.is_dir():
        return [f"model.path: {folder} is not a folder"]
    if not (folder / "config.json").is_file():
        hint = f"; did you mean {folder / 'final'}?" if (folder / "final" / "config.json").is_file() else ""
        return [f"model.path: {folder} is not a model folder: it has no config.json{hint}"]
    problems = []
    if not any(folder.glob("*.safetensors")):
        mend = " (pickled weights are not loaded: convert them to safetensors)" if any(folder.glob("*.bin")) else ""
        problems.append(f"model.path: {folder} holds no *.safetensors weights{mend}")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "tokenizer.model", "vocab.json")):
        problems.append(f"model.path: {folder} holds no tokenizer (tokenizer.json)")
    settings = read_json(folder / "config.json")
    if not isinstance(settings, dict) or "model_type" not in settings:
        problems.append(f"model.path: {folder}/config.json has no model_type")
    elif "auto_map" in settings and not config.trust_remote_code:
        problems.append(
            f"model.path: {folder} brings its own code (auto_map in config.json), which is not run; "
            "set model.trust_remote_code=true only if you have read it"
        )
    return problems


def _modules(folder: Path) -> list[dict]:
    path = folder / "modules.json"
    modules = read_json(path) if path.is_file() else []
    if not isinstance(modules, list) or not all(isinstance(m, dict) and {"type", "path"} <= m.keys() for m in modules):
        raise BadInput(f"{path}: not a list of modules with type and path")
    return modules


def _read_object(path: Path) -> dict:
    """A JSON object, {} where there is no such file."""
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise BadInput(f"{path}: not a JSON object")
    return values


def _stated_pooling(folder: Path, modules: list[dict]) -> str | None:
    for module in modules:
        if module.get("type", "").endswith(".Pooling"):
            values = _read_object(folder / module["path"] / "config.json")
            if "pooling_mode" in values:  # sentence-transformers 5.x and later name it
                mode = values["pooling_mode"]
                chosen = [_NEW_NAMES.get(name) for name in ([mode] if isinstance(mode, str) else mode)]
            else:
                on = [key for key, value in values.items() if key.startswith("pooling_mode_") and value is True]
                chosen = [next((ours for ours, key in POOLINGS.items() if key == name), None) for name in on]
            if len(chosen) != 1 or chosen[0] is None:
                raise BadInput(f"{folder}: its pooling {values} is none of {', '.join(POOLINGS)}; not supported")
            return chosen[0]
    return None


def _normalize(config: ModelConfig, folder: Path, modules: list[dict], notes: list[str]) -> bool:
    if config.normalize is not None:
        return config.normalize
    if not modules:
        notes.append("normalize: true (cosine similarity; the folder does not say)")
        return True
    return any(module.get("type", "").endswith(".Normalize") for module in modules)


def _stated_length(folder: Path) -> int | None:
    return _read_object(folder / "sentence_bert_config.json").get("max_seq_length")


def _position_limit(settings: dict) -> int | None:
    positions = settings.get("max_position_embeddings")
    if positions and settings.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        return positions - 2  # these count positions from padding_idx + 1
    return positions


def _prompts(folder: Path) -> dict[str, str]:
    return _read_object(folder / "config_sentence_transformers.json").get("prompts") or {}


def _prompt(asked: str | None, stated: dict[str, str], names: tuple[str, ...]) -> str:
    if asked is not None:
        return asked
    return next((stated[name] for name in names if stated.get(name)), "")
