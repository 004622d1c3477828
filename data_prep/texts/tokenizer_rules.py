"""What a model folder says of the texts it reads: prompts and lengths. No torch."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput

AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet")  # position ids start behind the padding id
_NO_LENGTH = 10**6  # tokenizers that know no limit state 1e30
TOKENIZER_FILES = ("*.json", "*.txt", "*.model", "*/config.json")


@dataclass(frozen=True)
class TextRules:
    """How texts become tokens. Lengths are tokens, prompt and special tokens included.

    notes: lines to say once: what was chosen for want of a statement.
    """

    query_prompt: str
    passage_prompt: str
    query_max_len: int
    passage_max_len: int
    notes: tuple[str, ...] = ()


def is_hub_id(path: str) -> bool:
    return not Path(path).exists() and path.count("/") <= 1 and not path.startswith((".", "/", "~"))


def fetch(path: str, patterns: tuple[str, ...], where: str) -> str:
    """The local folder of a model: `path` itself, or the hub snapshot of an id (downloaded once, then cached).

    patterns: which files to download. where: the key or flag that named it, for messages.
    """
    if Path(path).exists() or not is_hub_id(path):
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(path, allow_patterns=list(patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{where}: {path!r} is neither a folder here nor a model the hub gave us ({reason})") from None


def read_text_rules(
    folder: Path,
    query_prompt: str | None,
    passage_prompt: str | None,
    query_max_len: int | None,
    passage_max_len: int | None,
    named: Callable[[str], str],
    base: Path | None = None,
) -> TextRules:
    """Joins what is asked (None: not) with what the folder says. named: the key or flag of a field, for messages.
    base: the folder of the transformer, where `folder` holds an adapter.

    Raises BadInput: lengths that the model cannot hold, or that nobody states.
    """
    asked = {"query_max_len": query_max_len, "passage_max_len": passage_max_len}
    limit = position_limit(read_object((base or folder) / "config.json"))
    stated = _stated_length(folder)
    length = min(filter(None, (stated, limit)), default=None)
    if length is None and None in asked.values():
        both = " and ".join(map(named, asked))
        raise BadInput(f"{both}: {folder} states no maximum length; set both")
    problems, notes = [], []
    for name, value in asked.items():
        if value and limit and value > limit:
            problems.append(f"{named(name)}: {value} tokens, but the model has {limit} positions")
        if value is None and not stated:
            notes.append(f"{name}: {length} tokens (the model's positions; the folder states no shorter length)")
    if problems:
        raise BadInput(problems)
    prompts = read_object(folder / "config_sentence_transformers.json").get("prompts") or {}
    own_query, own_passage = (_stated(prompts, names) for names in (("query",), ("document", "passage", "corpus")))
    for name, value, own in (
        ("query_prompt", query_prompt, own_query),
        ("passage_prompt", passage_prompt, own_passage),
    ):
        if own and value is not None and value != own:
            notes.append(f"{name}: {value!r} is asked for, the model folder was trained with {own!r}")
    return TextRules(
        query_prompt=own_query if query_prompt is None else query_prompt,
        passage_prompt=own_passage if passage_prompt is None else passage_prompt,
        query_max_len=query_max_len or length,
        passage_max_len=passage_max_len or length,
        notes=tuple(notes),
    )


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not readable JSON ({error})") from None


def read_object(path: Path) -> dict:
    """A JSON object, {} where there is no such file."""
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise BadInput(f"{path}: not a JSON object")
    return values


def _stated_length(folder: Path) -> int | None:
    """As sentence-transformers finds it: in its own file, or in the tokenizer's, as its version 6 writes it."""
    stated = read_object(folder / "sentence_bert_config.json").get("max_seq_length")
    if stated:
        return stated
    length = read_object(folder / "tokenizer_config.json").get("model_max_length")
    return int(length) if isinstance(length, (int, float)) and length < _NO_LENGTH else None


def position_limit(settings: dict) -> int | None:
    positions = settings.get("max_position_embeddings")
    return positions - 2 if positions and settings.get("model_type") in AFTER_PADDING else positions


def _stated(prompts: dict[str, str], names: tuple[str, ...]) -> str:
    return next((prompts[name] for name in names if prompts.get(name)), "")
