"""Files of a model folder that the current and the previous major version of transformers read alike. No torch.

- transformers 5 renamed keys of config.json: `rope_theta` and `rope_scaling` became `rope_parameters`, `torch_dtype`
  became `dtype`. Version 4 ignores the new names and silently takes its defaults; text-embeddings-inference refuses a
  folder without the old ones. Both versions prefer their own names, so that a folder can state both.
- transformers 5 writes tokenizer classes that version 4 does not have. PreTrainedTokenizerFast exists in both, and does
  what tokenizer.json says and nothing else.
- The model card names the least version, for what the old names cannot express: least_version.
"""

import json
from pathlib import Path

from data_prep.texts.tokenizer_rules import read_object

OLDER = "4.57"  # the last minor version before transformers 5, which a test loads the folders with
# Loaded by OLDER in tests/end_to_end/test_older_transformers.py, or the same code as one of those.
_SAME = (
    "bert", "roberta", "xlm-roberta", "camembert", "mpnet", "modernbert", "qwen2", "qwen3", "llama", "t5", "mt5",
    "gemma3_text",
)  # fmt: skip
# Families with one rope for full and one for sliding attention: their older names, the older name of "every n-th layer
# has full attention", and what is added to a layer's index before it is divided by n.
_LAYERED = {
    "modernbert": ("global_rope_theta", "local_rope_theta", "global_attn_every_n_layers", 0),
    "gemma3_text": ("rope_theta", "rope_local_base_freq", "_sliding_window_pattern", 1),
}
_BESIDE = ("rope_theta", "partial_rotary_factor")  # beside rope_scaling in the older spelling, not in it
_GENERIC = "TokenizersBackend"  # of transformers 5, where it also answers to the older name
_READS_THE_FILE = "PreTrainedTokenizerFast"


def add_older_names(folder: Path) -> None:
    """Adds the older names to config.json, if the folder has one, and to a generic tokenizer's settings."""
    path = folder / "config.json"
    if path.is_file():
        _write(path, with_older_names(read_object(path)))
    tokenizer = read_object(folder / "tokenizer_config.json")
    if tokenizer.get("tokenizer_class") == _GENERIC:  # whose defaults are these
        inputs = tokenizer.get("model_input_names", ["input_ids", "attention_mask"])
        write_tokenizer_settings(folder, inputs, tokenizer.get("padding_side", "right"))


def write_tokenizer_settings(folder: Path, inputs: list[str], padding_side: str) -> None:
    """Rewrites tokenizer_config.json, so that both versions do what tokenizer.json says. inputs: the names of the
    model's inputs; both are what a class would know by itself, and the generic one does not."""
    path = folder / "tokenizer_config.json"
    settings = read_object(path)
    if "auto_map" in settings:  # a tokenizer of its own code
        return
    settings |= {"model_input_names": list(inputs), "padding_side": padding_side, "tokenizer_class": _READS_THE_FILE}
    if isinstance(settings.get("extra_special_tokens"), list):  # version 4 reads names there, and fails on a list
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    _write(path, settings)


def with_older_names(settings: dict) -> dict:
    """Returns a config.json with the older names beside the newer, also those of configs inside it."""
    inner = {
        key: with_older_names(value)
        for key, value in settings.items()
        if isinstance(value, dict) and "model_type" in value
    }
    older: dict = {}
    if isinstance(settings.get("dtype"), str):
        older["torch_dtype"] = settings["dtype"]
    rope = settings.get("rope_parameters")
    if isinstance(rope, dict):
        older |= _by_layer(settings, rope) if _is_layered(rope) else _older_rope(rope)
    return settings | inner | older


def least_version(settings: dict, bidirectional: bool | None) -> str | None:
    """Returns the oldest version of transformers that is known to read a folder as the trainer did; None: only the
    version that wrote it is. settings: its config.json. bidirectional: see ModelSpec."""
    if bidirectional or settings.get("model_type") not in _SAME:
        return None  # version 4 has no is_causal, and reads a decoder causally
    rope = settings.get("rope_parameters")
    if isinstance(rope, dict) and _is_layered(rope):
        named = _by_layer(settings, rope)
        plain = all(value.get("rope_type", "default") == "default" for value in rope.values() if value)
        return OLDER if plain and _LAYERED[settings["model_type"]][2] in named else None
    return OLDER


def _is_layered(rope: dict) -> bool:
    return any(isinstance(value, dict) for value in rope.values())


def _older_rope(rope: dict) -> dict:
    """One rope for all layers: the two names beside rope_scaling, and rope_scaling where there is any scaling."""
    older = {name: rope[name] for name in _BESIDE if rope.get(name) is not None}
    scaling = {name: value for name, value in rope.items() if name not in _BESIDE}
    return older | ({"rope_scaling": scaling} if scaling.get("rope_type", "default") != "default" else {})


def _by_layer(settings: dict, rope: dict) -> dict:
    """A rope for each kind of layer, for families whose older names are known."""
    if settings.get("model_type") not in _LAYERED:
        return {}
    full, sliding, every, first = _LAYERED[settings["model_type"]]
    kinds = {full: rope.get("full_attention") or {}, sliding: rope.get("sliding_attention") or {}}
    older = {name: kind["rope_theta"] for name, kind in kinds.items() if "rope_theta" in kind}
    n = _every(settings.get("layer_types") or [], first, settings.get(every))
    return older | ({every: n} if n else {})


def _every(layers: list[str], first: int, stated: int | None) -> int | None:
    """Returns n if every n-th layer has full attention and no other; None where no n says it."""
    for n in (*([stated] if stated else []), *range(1, len(layers) + 2)):
        if all((kind == "full_attention") == ((i + first) % n == 0) for i, kind in enumerate(layers)):
            return n
    return None


def _write(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
