"""Keys that look like supervision: scores, labels and negatives are read under the names the field uses, or refused.

- Names are compared by their words, so that negative_1, hardNegative1 and "Hard Negative 1" are one name.
- What is read: negatives, scores of a pair, scores of positives and of negatives.
- Any other key with such a word is a problem: as metadata it would be lost to training.
"""

import re
import unicodedata
from functools import lru_cache
from typing import Any, NamedTuple

from data_prep.reading.row import Row, kind, list_in_cell
from data_prep.records import Record

NEGATIVES, NEGATIVE_SCORES, POSITIVE_SCORES, GRADES, NEGATIVE_IDS, UNREAD = range(6)
NEGATIVE, POSITIVE = {"negative", "negatives", "neg", "negs"}, {"positive", "positives", "pos"}
LISTS = {"negatives", "negs"}  # names of several texts
GRADE = {"score", "scores", "label", "labels", "similarity", "similarities", "sim", "sims", "relevance", "relevancy"}
GRADE |= {"relevant", "grade", "grades", "logit", "logits"}
LOST = {"irrelevant"}  # supervision that no shape can hold
# Words that leave the meaning of a name as it is
OF_TEXT, OF_GRADE = {"hard", "text", "texts", "passage", "passages"}, {"cosine", "cos", "semantic", "gold", "teacher"}
STATED = {"duplicate", "relevant", "paraphrase", "match", "similar", "correct"}  # with "is": a label
IDS = {"id", "ids", "docid", "docids", "pid", "pids", "index", "idx"}
# A last word that makes a name say something about the text or score, not state one
ABOUT = {"url", "title", "source", "lang", "language", "model", "type", "method", "tag", "tags", "date", "time", "rank"}
ABOUT |= {"prompt", "prompts", "instruction", "instructions"}
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_ENDING = re.compile(r"(?<=[^\W\d_])(scores?|labels?|similarit(?:y|ies)|relevance|(?<=hard)neg(?:ative)?s?|logits?)$")


class Role(NamedTuple):
    """The meaning of a key that looks like supervision."""

    kind: int
    number: int  # of negative_1, …; -1 without one
    words: frozenset[str]


@lru_cache(maxsize=4096)
def role_of(key: str) -> Role | None:
    """Returns the meaning of a key, or None if it does not look like supervision."""
    spelt = _CAMEL.sub(" ", unicodedata.normalize("NFKC", key)).casefold()
    parts = re.findall(r"[^\W\d_]+|\d+", spelt)
    numbers = [int(part) for part in parts if part.isdecimal()]
    words = [word for part in parts if not part.isdecimal() for word in _ENDING.sub(r" \1", part).split()]
    found = _kind(words) if words else None
    return None if found is None else Role(found, numbers[-1] if numbers else -1, frozenset(words))


def _kind(words: list[str]) -> int | None:
    own, last = set(words), words[-1]
    negative, positive, grade = own & NEGATIVE, own & POSITIVE, own & GRADE
    if own <= STATED | {"is"} and words[0] == "is" and len(own) > 1:
        return GRADES
    if not (negative or positive or grade or own & LOST) or last in ABOUT:
        return None
    if last in IDS and not grade:
        return NEGATIVE_IDS if negative else None
    if negative and own <= NEGATIVE | OF_TEXT:
        return NEGATIVES
    if grade and own <= GRADE | OF_GRADE:
        return GRADES
    if grade and own <= NEGATIVE | GRADE | OF_GRADE | {"hard"}:
        return NEGATIVE_SCORES
    if grade and own <= POSITIVE | GRADE | OF_GRADE:
        return POSITIVE_SCORES
    return UNREAD


def read_supervision(row: Row, record: Record, own: bool) -> None:
    """Moves scores, labels and negatives from the keys that remain in the row to the record.

    own: the row is a record as it is, whose score may stand beside negatives. Every other key that looks like
    supervision becomes a problem of the row, except one that is null.
    """
    keys: dict[int, list[tuple[int, str]]] = {}
    for key, value in list(row.values.items()):
        role = role_of(key)
        if role is None:
            continue
        if value is None:  # a row with fewer negatives than others, an unscored row
            row.take(key, required=False)
        else:
            keys.setdefault(role.kind, []).append((role.number, key))
    if keys or record.score is not None:
        _read(row, record, {role: sorted(some, key=lambda pair: pair[0]) for role, some in keys.items()}, own)


def _read(row: Row, record: Record, keys: dict[int, list[tuple[int, str]]], own: bool) -> None:
    negatives, unread = keys.get(NEGATIVES, []), [key for _, key in keys.get(UNREAD, [])]
    for _, key in negatives:
        record.negatives += _negatives(row, key)
    if not record.negatives:
        unread += [key for _, key in keys.get(NEGATIVE_IDS, [])]
    for key in unread:
        text = "looks like supervision, but this shape does not read it, so it would not be trained on; rename it"
        row.found.append(f"key {key!r} {text} (--columns other={key}), or move it into 'metadata'")
    _read_teacher(row, record, keys.get(POSITIVE_SCORES, []), keys.get(NEGATIVE_SCORES, []), negatives)
    names = [key for _, key in keys.get(GRADES, [])]
    stated = [name for name in ("score", "teacher_scores") if getattr(record, name) is not None]
    if names and len(stated + names) > 1:
        row.found.append(f"keys {' and '.join(map(repr, stated + names))} all state scores of this row; keep one")
    elif names:
        _read_grade(row, record, names[0])
    documents = len(record.positives) + len(record.negatives)
    if record.score is not None and documents > 1 and (names or not own):
        name = names[0] if names else "score"
        mend = "write 'teacher_scores', a list with one number for each, or remove it"
        row.found.append(f"key {name!r} is one number for {documents} documents; {mend}")


def _negatives(row: Row, key: str) -> list[str]:
    """Returns the texts of a key: a list, or one text, but not under a plural."""
    value, words = row.values[key], role_of(key).words
    if row.table and isinstance(value, str) and words & LISTS:
        value = list_in_cell(value)
    if isinstance(value, list):
        return row.texts(key)
    if words & LISTS:
        row.take(key, required=False)
        text = f"must be a list of texts, not {kind(value)}; if it is one text, rename it to 'negative'"
        row.found.append(f"key {key!r} {text}")
        return []
    return [row.text(key)]


def _read_teacher(
    row: Row,
    record: Record,
    positive: list[tuple[int, str]],
    negative: list[tuple[int, str]],
    negatives: list[tuple[int, str]],
) -> None:
    """Reads scores that stand apart for positives and for negatives, such as pos_scores and neg_scores."""
    if not positive and not negative:
        return
    names = [key for _, key in (*positive, *negative)]
    if record.teacher_scores is not None:
        row.found.append(f"keys 'teacher_scores' and {names[0]!r} both state scores of this row; keep one")
        return
    texts, scored = [number for number, _ in negatives], [number for number, _ in negative]
    if max(scored, default=-1) >= 0 and texts != scored:
        row.found.append(f"the numbers of {', '.join(map(repr, names))} are not those of the negatives; rename them")
    sides = [[number for _, key in side for number in _numbers(row, key)] for side in (positive, negative)]
    wanted = len(record.positives), len(record.negatives)
    if (len(sides[0]), len(sides[1])) != wanted and not row.found:
        held = f"{len(sides[0])} scores of positives and {len(sides[1])} of negatives"
        text = f"{held} for {wanted[0]} positives and {wanted[1]} negatives; each document needs one"
        row.found.append(f"{', '.join(f'key {name!r}' for name in names)}: {text}")
    record.teacher_scores = sides[0] + sides[1]


def _read_grade(row: Row, record: Record, key: str) -> None:
    """Reads the score or label of a pair, or a list with the scores of all documents (positives, then negatives)."""
    value = row.values[key] = _plain(row, key)
    if not isinstance(value, list):
        before = len(row.found)
        record.score = row.score(key)
        row.found[before:] = [
            f"{reason}; if it is no score, rename it (--columns other={key})" for reason in row.found[before:]
        ]
        return
    if row.listed and not record.negatives and role_of(key).words & {"label", "labels"}:
        _divide_by_labels(row, record, key, value)
        return
    numbers, documents = _numbers(row, key), len(record.positives) + len(record.negatives)
    if len(numbers) != documents:
        text = f"has {len(numbers)} numbers for {documents} documents; it needs one for each positive, then negative"
        row.found.append(f"key {key!r} {text}")
    record.teacher_scores = numbers


def _divide_by_labels(row: Row, record: Record, key: str, labels: list) -> None:
    """Divides the documents of a row into positives (label 1) and negatives (label 0): a labelled list."""
    row.take(key, required=False)
    documents, count = record.positives, len(record.positives)
    if len(labels) != count:
        row.found.append(f"key {key!r} has {len(labels)} labels for {count} documents; each needs one")
    elif any(label not in (0, 1) for label in labels):
        mend = "put them under 'pos' and 'neg', with 'pos_scores' and 'neg_scores'"
        row.found.append(f"key {key!r} holds other labels than 0 and 1, which do not say what is relevant; {mend}")
    elif 1 not in labels:
        row.found.append(f"key {key!r} labels no document as relevant (1); such a row has no positive")
    else:
        record.positives = [text for text, label in zip(documents, labels) if label]
        record.negatives = [text for text, label in zip(documents, labels) if not label]


def _numbers(row: Row, key: str) -> list[float]:
    value = _plain(row, key)
    row.take(key, required=False)
    if isinstance(value, list):
        return [row.number(f"{key}[{i}]", number) for i, number in enumerate(value)]
    return [row.number(key, value)]


def _plain(row: Row, key: str) -> Any:
    """Returns a key's value: a list that a table holds as JSON, a label that is true or false as 1 or 0."""
    value = row.values[key]
    if row.table and isinstance(value, str):
        if value.lstrip().startswith("["):
            value = list_in_cell(value)
        elif value.strip().casefold() in ("true", "false"):
            value = value.strip().casefold() == "true"
    if isinstance(value, bool) and not role_of(key).words & {"score", "scores"}:
        return float(value)
    return value
