"""Pairs from chunks without a language model: title and body, inverse cloze task, keywords."""

import functools
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import regex

from data_prep.cluster.open import open_workers, problems_of
from data_prep.common.console import result, say, track
from data_prep.common.errors import BadInput, nearest
from data_prep.common.files import check, check_output_file, whole_file
from data_prep.common.finite import NULLS, is_finite, with_nulls
from data_prep.common.workers import batches
from data_prep.mining.bm25 import TOKENS
from data_prep.mining.keywords import Keywords
from data_prep.stores.base import Chunk, Collection, StoreConfig
from data_prep.stores.open import open_collection
from data_prep.texts.sentences import sentences

TASK_CHUNKS = 500
TITLE_WORDS = 25
QUESTION_WORDS = 3
KEEP_SENTENCE = 0.1  # share, by Lee et al. 2019, section 4: the model must also learn from words that both sides share
_HEADING = re.compile(r"#{1,6}\s+(?P<title>\S.*?)\s*#*\s*(?:\n|$)")
_UNDERLINED = re.compile(r"(?P<title>\S.*)\n(?P<line>([=*~^#-])\3{2,})\s*(?:\n|$)")
_PARAGRAPHS = re.compile(r"\n[ \t]*\n")
_LINE_ENDS = re.compile(r"\r\n?|\x85|\u2028")
# Words as a measure of length. Scripts without spaces count by character; signs and single letters do not count.
_WORDS = re.compile(TOKENS)


def generate_offline(
    config: StoreConfig,
    output: Path,
    *,
    where: dict[str, Any] | None = None,
    hide: Iterable[str] = (),
    limit: int | None = None,
    seed: int = 0,
    min_words: int = 8,
    keywords: int | None = None,
    workers: int = 1,
    on: str | None = None,
) -> int:
    """Writes one pair per chunk to JSONL: {"chunk_id", "question", "answer", "metadata"}. Returns their number.

    The metadata is the chunk's plus "rule" (see make_pair). Chunks without a pair are counted.

    hide: metadata fields whose value is removed from questions. limit: most pairs. min_words: of an answer.
    keywords: chunks without another pair get one of this many keywords and their whole text. workers, on: who makes
    the pairs, see cluster.open_workers; the store is read here.
    """
    problems = check_output_file(output) + problems_of(workers, on)
    problems += [
        f"--{name} {value}: must be 1 or more"
        for name, value in (("limit", limit), ("min-words", min_words))
        if value is not None and value < 1
    ]
    if keywords is not None and keywords < QUESTION_WORDS:
        problems.append(f"--keywords {keywords}: must be {QUESTION_WORDS} or more")
    check(problems)
    hide, rules, skipped = tuple(hide), Counter(), Counter()
    fields: dict[str, None] = {}
    lacking, chunks, nulls, collection = Counter(), 0, 0, config.collection
    with open_collection(config) as store, open_workers(workers, on) as pool, whole_file(output) as lines:
        keywords_of = _keywords_of(store, where, keywords) if keywords else None
        tasks = (
            _PairTask(some, hide, seed, min_words, keywords_of) for some in batches(store.chunks(where), TASK_CHUNKS)
        )
        pairs = chain.from_iterable(pool.map(_pairs, tasks))
        for chunk, pair in track(pairs, f"chunks of {collection}", note=pool.note):
            chunks += 1
            fields.update(dict.fromkeys(chunk.metadata))
            lacking.update(name for name in hide if chunk.metadata.get(name) in (None, ""))
            if isinstance(pair, str):
                skipped[pair] += 1
                continue
            nulls += not is_finite(pair["metadata"])
            lines.write(json.dumps(with_nulls(pair), ensure_ascii=False) + "\n")
            rules[pair["metadata"]["rule"]] += 1
            if rules.total() == limit:
                break
        _check_pairs(collection, where, hide, chunks, rules, skipped, lacking, fields)
    for reason, count in skipped.items():
        say(f"left out: {count:,} chunks: {reason}")
    for name, count in lacking.items():
        say(f"note: {count:,} chunks have no metadata field {name!r} to hide")
    if nulls:
        say(f"note: {nulls:,} pairs: {NULLS}")
    each = ", ".join(f"{rule} {count:,}" for rule, count in sorted(rules.items()))
    result(f"{output}: {rules.total():,} pairs from {chunks:,} chunks ({each})")
    return rules.total()


def _keywords_of(store: Collection, where: dict[str, Any] | None, most: int) -> Callable[[str], str]:
    words = Keywords(chunk.text for chunk in track(store.chunks(where), "counting words"))
    return functools.partial(_telling, words, most)


def _telling(words: Keywords, most: int, text: str) -> str:
    return " ".join(words.of(text, most))


class _PairTask(NamedTuple):
    """Chunks to make pairs of; the other arguments are those of make_pair."""

    chunks: list[Chunk]
    hide: tuple[str, ...]
    seed: int
    min_words: int
    keywords: Callable[[str], str] | None


def _pairs(task: _PairTask) -> list[tuple[Chunk, dict[str, Any] | str]]:
    """Returns the chunks, each with its pair, or with the reason why it has none."""
    return [(chunk, make_pair(chunk, *task[1:])) for chunk in task.chunks]


def _check_pairs(collection, where, hide, chunks, rules, skipped, lacking, fields) -> None:
    if not chunks:
        raise BadInput(f"--collection {collection}: no chunk" + (f" fits --where {json.dumps(where)}" if where else ""))
    known = ", ".join(sorted(fields)) or "none"
    unknown = [name for name in hide if lacking[name] == chunks]
    lack = f"no chunk has this metadata field; there are: {known}"
    check([f"--hide {name}: {lack}.{nearest(name, fields)}" for name in unknown])
    if not rules:
        why = "; ".join(f"{count:,} {reason}" for reason, count in skipped.items())
        hint = "(--min-words: words of an answer)"
        raise BadInput(f"--collection {collection}: no pair from {chunks:,} chunks: {why} {hint}")


def make_pair(
    chunk: Chunk,
    hide: Iterable[str] = (),
    seed: int = 0,
    min_words: int = 8,
    keywords: Callable[[str], str] | None = None,
) -> dict[str, Any] | str:
    """Returns the pair of a chunk, or the reason why it has none.

    The first rule applies whose question keeps three words or more after the values of the `hide` fields are removed:
    - "title": the question is the metadata `title`, the heading, or a first paragraph of at most 25 words (a PEP 257
      summary, a signature); the answer is the rest.
    - "inverse_cloze" (Lee et al. 2019, arXiv:1906.00300): the question is a drawn sentence, the answer the rest. In a
      tenth of the cases the sentence stays in the answer, as in the paper (metadata "sentence_kept": true).
    - "keyword": the question is keywords(text), the answer the whole text. Off without `keywords`.
    Draws depend only on the seed and the chunk's id.
    """
    digest = hashlib.blake2b(f"{seed}:{chunk.id}".encode(), digest_size=8).digest()
    draw = random.Random(int.from_bytes(digest, "big"))
    chunk = replace(chunk, text=_LINE_ENDS.sub("\n", chunk.text))
    text, names = chunk.text, [str(chunk.metadata.get(name) or "") for name in hide]

    def hidden(question: str) -> str:
        return functools.reduce(hide_name, names, question)

    rules = {
        "title": lambda: title_pair(chunk, min_words),
        "inverse_cloze": lambda: inverse_cloze(text, draw, min_words, hidden),
        "keyword": lambda: (keywords(text), text.strip()) if keywords and _words(text) >= min_words else None,
    }
    short = _words(text) < min_words
    reason = f"shorter than {min_words} words (--min-words)"
    for rule, make in rules.items():
        pair = make()
        if pair is None:
            continue
        if isinstance(pair, str):
            reason = reason if short else pair
            continue
        question, answer, *kept = pair
        question = hidden(question)
        if _words(question) >= QUESTION_WORDS:
            metadata = {**chunk.metadata, "rule": rule} | ({"sentence_kept": True} if any(kept) else {})
            return {"chunk_id": chunk.id, "question": question, "answer": answer, "metadata": metadata}
        if not short:
            reason = f"question of fewer than {QUESTION_WORDS} words"
    return reason


def title_pair(chunk: Chunk, min_words: int) -> tuple[str, str] | None:
    """Returns the chunk's title and body, or None if it has no title or too short a body."""
    text = chunk.text.strip()
    title = str(chunk.metadata.get("title") or "").strip()
    if title:
        body = text
        if heading := _HEADING.match(text):
            body = text[heading.end() :] if heading["title"].casefold() == title.casefold() else text
        elif text.casefold().startswith(title.casefold() + "\n"):
            body = text[len(title) :]
    elif heading := _HEADING.match(text) or _UNDERLINED.match(text):
        title, body = heading["title"], text[heading.end() :]
    else:
        first, *rest = _PARAGRAPHS.split(text, maxsplit=1)
        if not rest or _words(first) > TITLE_WORDS:
            return None
        title, body = " ".join(first.split()), rest[0]
    body = body.strip("\n").rstrip()
    long_enough = _words(body) >= min_words and _words(title) >= 1
    return (title, body) if long_enough and _squeeze(title) not in _squeeze(body) else None


def inverse_cloze(
    text: str, draw: random.Random, min_words: int, hidden: Callable[[str], str] = str
) -> tuple[str, str, bool] | str:
    """Returns a drawn sentence, the rest of the text, and if the sentence stayed in it; or why there is none.

    hidden: removes names from a sentence; only sentences that keep enough words are drawn.
    """
    spans, words = list(sentences(text)), _words(text)
    fit = [
        (start, end)
        for start, end in spans
        if _words(hidden(text[start:end])) >= QUESTION_WORDS and words - _words(text[start:end]) >= min_words
    ]
    if len(spans) < 2:
        return "no title, and one sentence only: no end of a sentence inside the text"
    if not fit:
        return f"no title, and no sentence of {QUESTION_WORDS} words whose rest has {min_words} words (--min-words)"
    start, end = draw.choice(fit)
    question = " ".join(text[start:end].split())
    if draw.random() < KEEP_SENTENCE:
        return question, text.strip(), True
    rest = f"{text[:start].rstrip()}{' ' if text[:start].strip() and text[end:].strip() else ''}{text[end:].lstrip()}"
    stands_twice = _squeeze(question) in _squeeze(rest)
    return "the drawn sentence stands twice in the text" if stands_twice else (question, rest.strip(), False)


def _words(text: str) -> int:
    return len(_WORDS.findall(text))


def _squeeze(text: str) -> str:
    return " ".join(text.casefold().split())


def name_pattern(name: str) -> regex.Pattern[str] | None:
    """Pattern of a name in every spelling: `ordered_dict`, `OrderedDict`, "ordered dict", `x.y.OrderedDict()`.

    By `regex`, whose \\w holds the marks on letters too (the vowel signs of Hindi), unlike Python's.
    """
    parts = regex.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W_A-Z]+|[A-Z]", name) or regex.findall(r"\w+", name)
    if not parts:
        return None
    spelled = r"[\W_]?".join(map(regex.escape, parts))
    return regex.compile(rf"(?<!\w)(?:\w+\.)*_*{spelled}_*(?:\(\))?(?!\w)", regex.IGNORECASE)


def hide_name(question: str, name: str) -> str:
    """Returns the question without the name, its module prefix and the quotes and brackets around it."""
    pattern = name_pattern(name)
    if pattern is None:
        return question
    question = re.sub(r"(?:`+|''|\"\")\s*(?:`+|''|\"\")", " ", pattern.sub(" ", question))
    question = re.sub(r"\(\s*\)|\[\s*\]", " ", question)
    return re.sub(r"\s+([,.;:!?])", r"\1", " ".join(question.split())).strip(" ,;:-")
