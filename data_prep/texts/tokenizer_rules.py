"""Prompts and lengths of a model folder, and its small files. No torch."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from data_prep.common.environment import client_problems, header_problems, proxy_note
from data_prep.common.errors import BadInput, first_line
from data_prep.common.finite import decode_json
from data_prep.common.paths import expanded, nearest_beside
from data_prep.common.secrets import url_problem

AFTER_PADDING = (  # position ids start behind the padding id
    "roberta", "xlm-roberta", "camembert", "mpnet", "data2vec-text", "xlm-roberta-xl", "roberta-prelayernorm", "xmod",
    "longformer", "ibert", "luke", "lilt", "markuplm", "layoutlmv3", "esm",
)  # fmt: skip
_N_POSITIONS = ("gpt2", "openai-gpt", "gpt_bigcode")  # their name of the number of learned positions
_NO_LENGTH = 10**6  # tokenizers that know no limit state 1e30
PROMPTS = {"query_prompt": ("query",), "passage_prompt": ("document", "passage", "corpus")}  # their names
TOKENIZER_FILES = ("*.json", "*.txt", "*.model", "*/config.json")


@dataclass(frozen=True)
class TextRules:
    """Prompts and lengths of texts: the same in shards, training, evaluation and export."""

    query_prompt: str
    passage_prompt: str
    query_max_len: int  # tokens, prompt and special tokens included
    passage_max_len: int  # tokens, prompt and special tokens included

    @property
    def max_len(self) -> int:
        """The longer of the two lengths, the only one that a model folder states."""
        return max(self.query_max_len, self.passage_max_len)


class AskedRules(Protocol):
    """The rules that a run file or command line states. None: the model folder's."""

    query_prompt: str | None
    passage_prompt: str | None
    query_max_len: int | None
    passage_max_len: int | None


WITHOUT_NETWORK = (
    "on a machine without a network: run `hf download {} --local-dir FOLDER` on one that has it, copy the folder here, "
    "and name the folder"
)


TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def is_hub_id(path: str) -> bool:
    return not Path(path).exists() and path.count("/") <= 1 and not path.startswith((".", "/", "~"))


def fetch(path: str, patterns: tuple[str, ...], where: str) -> str:
    """Returns the local folder of a model: `path` itself, or the hub snapshot of an id (downloaded once, then cached).

    patterns: the files to download. where: the key or flag that named the model, for messages.
    """
    path = expanded(path)
    if Path(path).exists() or not is_hub_id(path):
        return path
    from huggingface_hub import snapshot_download

    with asking_hub(path, where):
        return snapshot_download(path, allow_patterns=list(patterns))


@contextmanager
def asking_hub(path: str, where: str) -> Iterator[None]:
    """A block in which a library asks the model hub, and nothing else is done. Whatever it raises becomes BadInput: the
    variable that keeps a client from being made, the hub's answer, or what to do without a network."""
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except Exception as error:  # of httpx or httpx2, and ValueError for what a header or a proxy's address cannot be
        unasked = isinstance(error, LocalEntryNotFoundError) or not isinstance(
            error, HfHubHTTPError | HFValidationError
        )
        if problems := _hub_problems() if unasked and not HF_HUB_OFFLINE else []:
            what = f"{where}: {path!r} is no folder here, and no hub can be asked"
            raise BadInput(f"{what}: {problem}" for problem in problems) from None
        reason = first_line(error)
        hint = f" ({near.strip()})" if (near := nearest_beside(Path(path))) else ""
        what = f"{where}: {path!r} is no folder here{hint}, and the model hub did not provide it ({reason})"
        raise BadInput(f"{what}{proxy_note(_hub())}; {WITHOUT_NETWORK.format(path)}" if unasked else what) from None


def _hub() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def _hub_problems() -> list[str]:
    """Returns what of the environment keeps huggingface_hub from asking."""
    wrong = url_problem(_hub(), "HF_ENDPOINT", "https://huggingface.co", "holds a user or password; set HF_TOKEN")
    return [*([wrong] if wrong else client_problems(_hub())), *header_problems(*TOKENS)]


def read_text_rules(
    folder: Path, asked: AskedRules | None, named: Callable[[str], str], base: Path | None = None
) -> tuple[TextRules, list[str]]:
    """Joins what is asked with what the folder says; returns the rules and notes on what was chosen.

    named: gives the key or flag of a field, for messages. base: the transformer's folder, where `folder` holds an
    adapter. Raises BadInput for lengths that the model cannot hold, or that nobody states.
    """
    lengths = {name: getattr(asked, name, None) for name in ("query_max_len", "passage_max_len")}
    limit = position_limit(read_object((base or folder) / "config.json"))
    stated = _stated_length(folder)
    length = min(filter(None, (stated, limit)), default=None)
    if length is None and None in lengths.values():
        both = " and ".join(map(named, lengths))
        raise BadInput(f"{both}: {folder} states no maximum length; set both")
    problems, notes = [], []
    for name, value in lengths.items():
        if value and limit and value > limit:
            problems.append(f"{named(name)}: {value} tokens, but the model has {limit} positions; lower it")
        if value is None and not stated:
            notes.append(f"{name}: {length} tokens (the model's positions; the folder states no shorter length)")
    if problems:
        raise BadInput(problems)
    prompts = read_object(folder / "config_sentence_transformers.json").get("prompts") or {}
    chosen = {}
    for name, keys in PROMPTS.items():
        own, value = next((prompts[key] for key in keys if prompts.get(key)), ""), getattr(asked, name, None)
        if own and value is not None and value != own:
            notes.append(f"{name}: {value!r} is asked for, the model folder was trained with {own!r}")
        chosen[name] = own if value is None else value
    return TextRules(**chosen, **{name: value or length for name, value in lengths.items()}), notes


def read_json(path: Path) -> Any:
    try:
        return decode_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not readable JSON ({error})") from None


def read_object(path: Path) -> dict:
    """Reads a JSON object; returns {} if there is no such file."""
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise BadInput(f"{path}: not a JSON object")
    return values


def _stated_length(folder: Path) -> int | None:
    """Reads sentence-transformers' own file, or the tokenizer's, to which its version 6 writes the length."""
    stated = read_object(folder / "sentence_bert_config.json").get("max_seq_length")
    if stated:
        return stated
    length = read_object(folder / "tokenizer_config.json").get("model_max_length")
    return int(length) if isinstance(length, (int, float)) and length < _NO_LENGTH else None


def position_limit(settings: dict) -> int | None:
    """Returns the tokens that a transformer has positions for; None: no limit. settings: its config.json."""
    kind = settings.get("model_type")
    positions = settings.get("n_positions" if kind in _N_POSITIONS else "max_position_embeddings")
    if not positions or kind not in AFTER_PADDING or settings.get("position_embedding_type") == "rotary":
        return positions
    padding = 1 if kind == "mpnet" else settings.get("pad_token_id") or 0  # mpnet's is fixed
    return positions - max(2, padding + 1)
