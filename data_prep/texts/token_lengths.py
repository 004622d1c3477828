"""Lengths of texts in tokens, by the `tokenizers` library and tokenizer.json, without transformers."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.common.console import track
from data_prep.common.errors import BadInput
from data_prep.records import Record
from data_prep.texts.lengths import PERCENTILES, by_powers_of_two
from data_prep.texts.prompts import OwnPrompts
from data_prep.texts.tokenizer_rules import TOKENIZER_FILES, TextRules, fetch, read_text_rules

CHARACTERS = 20_000_000  # tokenised at most
BATCH = 1000
BOUNDS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)  # tokens, of "over"


class Reader(NamedTuple):
    """A tokenizer's folder, with the prompts and lengths of its texts."""

    folder: str
    rules: TextRules
    own_prompts: OwnPrompts = OwnPrompts()  # of sources and rows


def reader_of(model: str, where: str) -> Reader:
    """Returns the tokenizer of a model folder or hub id, with the folder's prompts and lengths.

    Raises BadInput: no folder, no tokenizer.json, no stated length. where: the flag, for messages.
    """
    folder = fetch(model, TOKENIZER_FILES, where)
    if not Path(folder).is_dir():
        raise BadInput(f"{where}: {folder} is not a folder")
    if not has_tokenizer(folder):
        raise BadInput(f"{where}: {folder} has no tokenizer.json; save it with transformers' save_pretrained")
    return Reader(folder, read_text_rules(Path(folder), None, lambda key: f"{where} ({key})")[0])


def has_tokenizer(folder: str) -> bool:
    return (Path(folder) / "tokenizer.json").is_file()


def token_lengths(reader: Reader, records: Iterable[Record]) -> tuple[dict[str, Any], int]:
    """Returns lengths by field, prompts included, and the rows read: all, or as many as hold CHARACTERS together.

    A field (query, positive, negative) with texts has "texts", "limit", "cut", "p50", "p90", "p99", "max", "over":
    {bound: texts longer than it} and "histogram", see lengths.py.
    """
    lengths: dict[str, list[int]] = {"query": [], "positive": [], "negative": []}
    waiting: list[tuple[str, str]] = []
    tokenizer = tokenizer_of(reader.folder)
    rows = characters = 0

    def count() -> None:
        for (field, _), encoding in zip(waiting, tokenizer.encode_batch_fast([text for _, text in waiting])):
            lengths[field].append(len(encoding.ids))
        waiting.clear()

    for record in track(records, "tokens"):
        if characters >= CHARACTERS:
            break
        rows += 1
        prompts = reader.own_prompts.of_record(reader.rules, record)
        waiting.append(("query", prompts.query + record.query))
        waiting += [("positive", prompts.passage + text) for text in record.positives]
        waiting += [("negative", prompts.passage + text) for text in record.negatives]
        characters += sum(len(text) for _, text in waiting[-1 - len(record.positives) - len(record.negatives) :])
        if len(waiting) >= BATCH:
            count()
    count()
    limits = {"query": reader.rules.query_max_len}
    return {
        field: _summary(np.sort(counts), limits.get(field, reader.rules.passage_max_len))
        for field, counts in lengths.items()
        if counts
    }, rows


def _summary(ordered: Any, limit: int) -> dict[str, Any]:
    texts = len(ordered)
    longer = {bound: int(texts - ordered.searchsorted(bound, "right")) for bound in sorted({*BOUNDS, limit})}
    return {
        "texts": texts,
        "limit": limit,
        "cut": longer[limit],
        **{f"p{p}": int(ordered[-(-texts * p // 100) - 1]) for p in PERCENTILES},
        "max": int(ordered[-1]),
        "over": {str(bound): count for bound, count in longer.items()},
        "histogram": by_powers_of_two(Counter(ordered.tolist()).items()),
    }


def tokenizer_of(folder: str) -> Any:
    """Loads a tokenizer of the `tokenizers` library that neither truncates nor pads. Raises BadInput."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    except Exception as error:  # the library raises plain Exception
        raise BadInput(f"{folder}/tokenizer.json: is no tokenizer that can be read ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
