"""Tokens of the train rows, made once by `shard --tokenizer` and memory-mapped by every run.

Four little-endian files beside the shards. train.tokens: the ids of all texts end to end, special tokens included, cut
at the maximum length (uint16, or uint32 where the vocabulary needs it). train.token_starts (texts + 1,) int64: where
each text begins. train.token_lengths (texts,) int32: how many tokens it has before the cut. train.token_rows
(rows + 1,) int64: the first text of each row; the texts of a row are its query, its positives and its negatives. The
manifest's `tokenizer` says what made them (TokenFacts).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np

FILES = ("train.tokens", "train.token_starts", "train.token_lengths", "train.token_rows")
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class TokenFacts:
    """What decides on the ids of a text, as the manifest records it.

    model: as it was named. sha256: of its tokenizer.json, see tokenizer_hash. Lengths are tokens, prompt and special
    tokens included. leading, trailing: special tokens before and after every text. truncation_side: where a text that
    is too long loses tokens. id_bytes: 2 or 4.
    """

    model: str
    sha256: str
    query_prompt: str
    passage_prompt: str
    query_max_len: int
    passage_max_len: int
    leading: int
    trailing: int
    truncation_side: str
    id_bytes: int

    @property
    def dtype(self) -> str:
        return f"<u{self.id_bytes}"

    @classmethod
    def of_manifest(cls, values: dict[str, Any]) -> TokenFacts:
        """From the manifest's `tokenizer`, which has counts beside these."""
        return cls(**{name: values[name] for name in cls.__dataclass_fields__})


def tokenizer_hash(folder: Path) -> str:
    """sha256 of a folder's tokenizer.json without its truncation and padding, which say how it was used last and not
    what it makes of a text. Raises BadInput."""
    path = folder / TOKENIZER_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{folder}: has no {TOKENIZER_FILE}, of which pre-tokenised shards record the hash") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not readable JSON ({error})") from None
    kept = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


class TokenArrays:
    """The memory-mapped tokens of a split. Memory does not grow with the number of rows."""

    def __init__(self, folder: Path, facts: TokenFacts):
        import numpy as np

        self.facts = facts
        dtypes = (facts.dtype, "<i8", "<i4", "<i8")
        mapped = (np.memmap(folder / name, dtype, "r") for name, dtype in zip(FILES, dtypes))
        self._ids, self._starts, self._lengths, self._rows = map(np.asarray, mapped)

    def first_texts(self, rows: list[int]) -> np.ndarray:
        """The number of each row's query; its positives and negatives follow."""
        return self._rows[rows]

    def ids(self, texts: np.ndarray, max_len: int) -> tuple[list[list[int]], int]:
        """Token ids of these texts, cut at max_len (at most the length they were cut at when they were made), and how
        many were cut."""
        found = [
            self._cut(self._ids[start:stop].tolist(), max_len)
            for start, stop in zip(self._starts[texts].tolist(), self._starts[texts + 1].tolist())
        ]
        return found, int((self._lengths[texts] > max_len).sum())

    def _cut(self, ids: list[int], max_len: int) -> list[int]:
        """At most max_len of these ids, the special ones among them."""
        if len(ids) <= max_len:
            return ids
        before, after = self.facts.leading, len(ids) - self.facts.trailing
        own = max_len - before - self.facts.trailing
        kept = ids[after - own : after] if self.facts.truncation_side == "left" else ids[before : before + own]
        return ids[:before] + kept + ids[after:]
