"""How long texts are for a tokenizer: read from tokenizer.json by the `tokenizers` library, without transformers."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.common.console import track
from data_prep.common.errors import BadInput
from data_prep.records import Record
from data_prep.texts.lengths import PERCENTILES, by_powers_of_two
from data_prep.texts.tokenizer_rules import TOKENIZER_FILES, TextRules, fetch, read_text_rules

CHARACTERS = 20_000_000  # of texts that are tokenised at most
BATCH = 1000
BOUNDS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)  # tokens, of "over"


class Reader(NamedTuple):
    """A tokenizer and how a run reads texts with it: prompts, and the tokens at which texts are cut."""

    folder: str
    rules: TextRules


def reader_of(model: str, where: str) -> Reader:
    """The tokenizer of a model folder or hub id, with what the folder says of prompts and lengths. BadInput: no folder,
    no tokenizer.json, no stated length; `where` names the flag."""
    folder = fetch(model, TOKENIZER_FILES, where)
    if not Path(folder).is_dir():
        raise BadInput(f"{where}: {folder} is not a folder")
    if not has_tokenizer(folder):
        raise BadInput(f"{where}: {folder} has no tokenizer.json; save it with transformers' save_pretrained")
    return Reader(folder, read_text_rules(Path(folder), None, None, None, None, named=lambda key: f"{where} ({key})"))


def has_tokenizer(folder: str) -> bool:
    return (Path(folder) / "tokenizer.json").is_file()


def token_lengths(reader: Reader, records: Iterable[Record]) -> tuple[dict[str, Any], int]:
    """{field: {"texts", "limit", "cut", "p50", "p90", "p99", "max", "over": {bound: texts longer than it},
    "histogram": see lengths.py}} of query, positive and negative, prompts included; fields without a text are left out.
    Also how many rows were read: all, or as many as hold CHARACTERS together."""
    import numpy as np

    found: dict[str, list[int]] = {"query": [], "positive": [], "negative": []}
    waiting: list[tuple[str, str]] = []
    tokenizer = tokenizer_of(reader.folder)
    prompts = {"query": reader.rules.query_prompt}
    rows = characters = 0

    def count() -> None:
        texts = [prompts.get(field, reader.rules.passage_prompt) + text for field, text in waiting]
        for (field, _), encoding in zip(waiting, tokenizer.encode_batch_fast(texts)):
            found[field].append(len(encoding.ids))
        waiting.clear()

    for record in track(records, "tokens"):
        if characters >= CHARACTERS:
            break
        rows += 1
        waiting.append(("query", record.query))
        waiting += [("positive", text) for text in record.positives]
        waiting += [("negative", text) for text in record.negatives]
        characters += sum(len(text) for _, text in waiting[-1 - len(record.positives) - len(record.negatives) :])
        if len(waiting) >= BATCH:
            count()
    count()
    limits = {"query": reader.rules.query_max_len}
    return {
        field: _summary(np.sort(lengths), limits.get(field, reader.rules.passage_max_len))
        for field, lengths in found.items()
        if lengths
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
    """The `tokenizers` library's, which neither cuts nor pads. Raises BadInput."""
    from tokenizers import Tokenizer

    try:
        made = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    except Exception as error:  # the library raises plain Exception
        raise BadInput(f"{folder}/tokenizer.json: is no tokenizer that can be read ({error})") from None
    made.no_truncation()
    made.no_padding()
    return made
