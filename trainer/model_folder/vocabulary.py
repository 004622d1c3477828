"""Tokens that a tokenizer can make and a transformer has no embedding for. No torch, no transformers."""

from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

from data_prep.common.files import check
from data_prep.texts.tokenizer_rules import read_json, read_object
from trainer.model_folder.files import ADAPTER_WEIGHTS, fetch
from trainer.model_folder.spec import ModelSpec

TOKENIZER = "tokenizer.json"


def check_embedded(spec: ModelSpec, tokenizer: str | None = None) -> None:
    """Raises BadInput if a model's tokenizer makes tokens that it has no embedding for. tokenizer: another one's path,
    model.tokenizer."""
    if spec.own_code or (spec.is_adapter and not tokenizer and _brings_embeddings(Path(spec.path))):
        return  # own code may count otherwise
    named = ("model.tokenizer", fetch(tokenizer)) if tokenizer else ("model.path", spec.path)
    check(unembedded(*named, read_json(Path(spec.base) / "config.json")))


def _brings_embeddings(folder: Path) -> bool:
    """True if an adapter's file holds embeddings, which take the place of the base's."""
    with suppress(SafetensorError, OSError), safe_open(folder / ADAPTER_WEIGHTS, framework="numpy") as file:
        return any("embed" in name for name in file.keys())  # noqa: SIM118
    return False  # loading it will say what is wrong


def unembedded(key: str, folder: str, settings: dict) -> list[str]:
    """Returns a problem if a token's id is beyond the transformer's embeddings: a text with it would stop a run midway.

    key: of the run file, for the message. folder: the tokenizer's. settings: the transformer's config.json.
    """
    rows, mask = settings.get("vocab_size"), _mask(Path(folder))
    if not isinstance(rows, int):
        return []
    beyond = {token: id for token, id in _ids(Path(folder)).items() if id >= rows and token != mask}
    if not beyond:
        return []
    named, last = ", ".join(map(repr, sorted(beyond, key=beyond.__getitem__)[:3])), max(beyond.values())
    return [
        f"{key}: the tokenizer in {folder} has {len(beyond)} token(s) without an embedding ({named}): the model "
        f"embeds {rows}, and ids go up to {last}. Resize it with transformers, "
        f"model.resize_token_embeddings({last + 1}), and save it; or take them out of {TOKENIZER}"
    ]


def _ids(folder: Path) -> dict[str, int]:
    """Returns the id of every token, from tokenizer.json or from the files of a BERT that has none."""
    if not (folder / TOKENIZER).is_file():
        words = folder / "vocab.txt"
        lines = words.read_text(encoding="utf-8").rstrip("\n").split("\n") if words.is_file() else []
        return {token: id for id, token in enumerate(lines)} | read_object(folder / "added_tokens.json")
    values = read_object(folder / TOKENIZER)
    vocabulary = values.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):  # unigram: [token, score], its place is its id
        vocabulary = {entry[0]: id for id, entry in enumerate(vocabulary)}
    return vocabulary | {token["content"]: token["id"] for token in values.get("added_tokens", [])}


def _mask(folder: Path) -> str | None:
    """Returns the token of masked language modelling, which no text of a run holds: some models have no row for it."""
    mask = read_object(folder / "tokenizer_config.json").get("mask_token")
    return mask.get("content") if isinstance(mask, dict) else mask
