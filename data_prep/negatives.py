"""Hard negatives: texts that share words with the query and are no positive of it."""

from collections import defaultdict
from collections.abc import Iterator

from data_prep.problems import BadInput
from data_prep.progress import say, track
from data_prep.records import Record, normalise, query_key, text_key

# Scripts without spaces are matched by character, everything else by words of two letters or more.
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
TOKENS = rf"(?u)[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w){{2,}}"


class _Corpus:
    """The distinct positives of one input, and what may not be a negative of a row."""

    def __init__(self, records: list[Record]):
        self.texts: list[str] = []
        self.keys: list[int] = []
        self.at: dict[int, int] = {}  # text key -> place in texts
        self.of_doc: dict[str, set[int]] = defaultdict(set)  # doc id -> text keys
        self.of_query: dict[int, set[int]] = defaultdict(set)  # query key -> keys of every row's positives
        for record in records:
            query = query_key(record)
            for i, text in enumerate(record.positives):
                key = text_key(text)
                if key not in self.at:
                    self.at[key] = len(self.texts)
                    self.texts.append(text)
                    self.keys.append(key)
                self.of_query[query].add(key)
                if record.doc_ids:
                    self.of_doc[record.doc_ids[i]].add(key)

    def forbidden(self, record: Record) -> set[int]:
        """Own positives, positives of an equal query (for a variant: of its parent's), texts of the same documents,
        present negatives, the query."""
        query = query_key(record)
        keys = {query, text_key(record.query), *self.of_query[query], *map(text_key, record.negatives)}
        return keys.union(*(self.of_doc[doc] for doc in record.doc_ids))


def add_hard_negatives(records: list[Record], k: int, where: str) -> None:
    """Appends to each row up to k positives of other rows, best BM25 score first (bm25s, method "lucene", k1 1.5,
    b 0.75; Robertson and Zaragoza 2009). Only texts that share a word with the query count: a row may get fewer, said.

    records: all rows of one input, changed in place. where: the input's name for messages. Rows with a graded `score`
    are left alone (their item need not be a positive); rows with `teacher_scores` would get unscored texts: BadInput.
    """
    if taught := sum(record.teacher_scores is not None for record in records):
        raise BadInput(
            f"{where}: --hard-k cannot add to {taught:,} rows with teacher_scores; leave it out for this input"
        )
    corpus = _Corpus(records)
    rows = [record for record in records if record.score is None]
    if len(rows) < len(records):
        say(f"{where}: {len(records) - len(rows):,} rows with a score get no hard negatives")
    fewer = 0
    for record, ranked in track(_ranked(corpus, rows, k), f"{where}: BM25", total=len(rows)):
        forbidden = corpus.forbidden(record)
        fresh = [corpus.texts[i] for i in ranked if corpus.keys[i] not in forbidden]
        fresh = [text for text in fresh if not _same_answer(text, record.positives)][:k]
        record.negatives.extend(fresh)
        fewer += len(fresh) < k
    if fewer:
        say(f"{where}: {fewer:,} of {len(rows):,} rows got fewer than {k} hard negatives: no more texts share a word")


def _same_answer(text: str, positives: list[str]) -> bool:
    """Whether the text holds a positive or is part of one: it then answers the query as well (not for a few words)."""
    candidate = normalise(text)
    for positive in map(normalise, positives):
        shorter, longer = sorted((candidate, positive), key=len)
        if shorter.count(" ") >= 3 and shorter in longer:
            return True
    return False


def _ranked(corpus: _Corpus, rows: list[Record], k: int) -> Iterator[tuple[Record, list[int]]]:
    """Each row with the places of the best texts, long enough that k remain without the forbidden ones."""
    import bm25s

    def tokens(texts: list[str]) -> list[list[str]]:
        return bm25s.tokenize(texts, token_pattern=TOKENS, stopwords=None, return_ids=False, show_progress=False)

    split = tokens(corpus.texts)
    if not any(split):
        yield from ((record, []) for record in rows)
        return
    index = bm25s.BM25()
    index.index(split, show_progress=False)
    known = index.vocab_dict
    for record, words in zip(rows, tokens([record.query for record in rows])):
        words = [word for word in words if word in known]
        if not words:
            yield record, []
            continue
        depth = min(len(corpus.texts), 2 * k + len(corpus.forbidden(record)))
        places, scores = index.retrieve([words], k=depth, show_progress=False, backend_selection="numpy")
        yield record, [int(i) for i, score in zip(places[0], scores[0]) if score > 0]
