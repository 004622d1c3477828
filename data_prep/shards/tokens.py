"""Tokens of the train rows, made once by `shard --tokenizer` and memory-mapped by every run.

Four little-endian files beside the shards:

- train.tokens: the ids of all texts end to end, special tokens included, truncated to the maximum length. uint16, or
  uint32 where the vocabulary needs it.
- train.token_starts (texts + 1,) int64: the position of each text's first id.
- train.token_lengths (texts,) int32: tokens of each text before truncation.
- train.token_rows (rows + 1,) int64: the first text of each row. A row's texts are its query, positives, negatives.

The manifest's `tokenizer` records what made them (TokenFacts).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.common.errors import BadInput
from data_prep.common.finite import decode_json
from data_prep.texts.prompts import OwnPrompts
from data_prep.texts.tokenizer_rules import TextRules

FILES = ("train.tokens", "train.token_starts", "train.token_lengths", "train.token_rows")
TOKENIZER_FILE = "tokenizer.json"
OWN, HASH = "own_prompts", "prompts_sha256"  # keys of the manifest


@dataclass(frozen=True)
class TokenFacts:
    """Everything that decides the ids of a text, as the manifest records it."""

    model: str  # as the user named it
    sha256: str  # of its tokenizer.json, see tokenizer_hash
    rules: TextRules
    leading: int  # special tokens before every text
    trailing: int  # special tokens after every text
    truncation_side: str  # "left" or "right": where a text that is too long loses tokens
    id_bytes: int  # 2 or 4
    own_prompts: OwnPrompts = field(default_factory=OwnPrompts)  # of sources and rows

    @property
    def dtype(self) -> str:
        return f"<u{self.id_bytes}"

    @classmethod
    def of_manifest(cls, values: dict[str, Any]) -> TokenFacts:
        """Reads the manifest's `tokenizer`, which holds counts beside these. Raises BadInput for prompts that were
        changed since. Folders written before had prompts of the model only, without a hash."""
        rules = TextRules(*(values[name] for name in TextRules.__dataclass_fields__))
        own = OwnPrompts(**values.get(OWN, {}))
        if values.get(HASH, own.fingerprint(rules)) != own.fingerprint(rules):
            raise BadInput(f"manifest.json: its prompts do not have the hash {HASH}: they were edited; shard again")
        plain = [name for name in cls.__dataclass_fields__ if name not in ("rules", OWN)]
        return cls(rules=rules, own_prompts=own, **{name: values[name] for name in plain})

    def for_manifest(self) -> dict[str, Any]:
        """Returns the facts side by side, rules among them, and the hash of all prompts."""
        plain = {name: value for name, value in vars(self).items() if name not in ("rules", OWN)}
        own = {OWN: self.own_prompts.for_manifest()} if self.own_prompts else {}
        return plain | vars(self.rules) | own | {HASH: self.own_prompts.fingerprint(self.rules)}


def tokenizer_hash(folder: Path) -> str:
    """Returns the sha256 of a folder's tokenizer.json. Raises BadInput.

    Truncation and padding are left out: they record the tokenizer's last use and change no ids.
    """
    path = folder / TOKENIZER_FILE
    try:
        content = decode_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{folder}: has no {TOKENIZER_FILE}, of which pre-tokenised shards record the hash") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not readable JSON ({error})") from None
    kept = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


class TokenArrays:
    """The memory-mapped tokens of a split. Memory does not grow with the number of rows."""

    def __init__(self, folder: Path, facts: TokenFacts):
        self.facts = facts
        dtypes = (facts.dtype, "<i8", "<i4", "<i8")
        mapped = (np.memmap(folder / name, dtype, "r") for name, dtype in zip(FILES, dtypes))
        self._ids, self._starts, self._lengths, self._rows = map(np.asarray, mapped)

    def first_texts(self, rows: list[int]) -> np.ndarray:
        """Returns the number of each row's query; its positives and negatives follow."""
        return self._rows[rows]

    def ids(self, texts: np.ndarray, max_len: int) -> tuple[list[list[int]], int]:
        """Returns the ids of these texts, cut to max_len (at most the stored length), and how many were truncated."""
        ids = [
            self._cut(self._ids[start:stop].tolist(), max_len)
            for start, stop in zip(self._starts[texts].tolist(), self._starts[texts + 1].tolist())
        ]
        return ids, int((self._lengths[texts] > max_len).sum())

    def _cut(self, ids: list[int], max_len: int) -> list[int]:
        """Truncates ids to max_len; the special ones are kept."""
        if len(ids) <= max_len:
            return ids
        before, after = self.facts.leading, len(ids) - self.facts.trailing
        own = max_len - before - self.facts.trailing
        kept = ids[after - own : after] if self.facts.truncation_side == "left" else ids[before : before + own]
        return ids[:before] + kept + ids[after:]
