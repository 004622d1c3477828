"""What a model folder says about itself: pooling, normalisation, prompts, length, remote code. Never imports torch."""

from dataclasses import dataclass, field
from pathlib import Path

from data_prep import model_folder
from data_prep.model_folder import TOKENIZER_FILES, read_json, read_object, read_text_rules
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


def fetch(path: str, with_code: bool = False) -> str:
    """The local folder of a model: `path` itself, or the hub snapshot of an id (downloaded once, then cached)."""
    patterns = (*TOKENIZER_FILES, "*.safetensors", *(["*.py"] if with_code else []))
    return model_folder.fetch(path, patterns, "model.path")


def read_spec(config: ModelConfig, folder: str | Path) -> ModelSpec:
    """Joins what the run file asks with what the folder says.

    Raises BadInput with every problem: not a model folder, remote code, no statement of the pooling, lengths that the
    model cannot hold. There is no default pooling: a wrong one is a large and silent loss.
    """
    folder = Path(folder)
    problems = _folder_problems(config, folder)
    if problems:
        raise BadInput(problems)
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
    rules = read_text_rules(
        folder,
        config.query_prompt,
        config.passage_prompt,
        config.query_max_len,
        config.passage_max_len,
        named="model.{}".format,
    )
    return ModelSpec(
        path=str(folder),
        pooling=pooling,
        normalize=_normalize(config, folder, modules, notes),
        query_prompt=rules.query_prompt,
        passage_prompt=rules.passage_prompt,
        query_max_len=rules.query_max_len,
        passage_max_len=rules.passage_max_len,
        notes=[*notes, *rules.notes],
    )


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


def _stated_pooling(folder: Path, modules: list[dict]) -> str | None:
    for module in modules:
        if module.get("type", "").endswith(".Pooling"):
            values = read_object(folder / module["path"] / "config.json")
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
