"""mine: rows of any accepted format to records with hard negatives from a corpus, a store or the rows themselves."""

import json
import shutil
from collections.abc import Iterable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from data_prep.common.console import result, say, track
from data_prep.common.errors import BadInput
from data_prep.common.files import spool_beside, whole_file
from data_prep.common.workers import batches
from data_prep.mining.bm25 import Bm25
from data_prep.mining.candidates import Corpus
from data_prep.mining.choice import EXACT_UP_TO, Choice
from data_prep.mining.dense_search import Dense, Encoder, Searcher
from data_prep.mining.miner import Miner, PairScorer
from data_prep.mining.ranker import Ranker
from data_prep.mining.vector_cache import VectorCache
from data_prep.reading.formats import read_records, source_names
from data_prep.reading.row_problems import Problems
from data_prep.records import Record
from data_prep.stores.base import Chunk

CHUNKS_AT_ONCE = 512  # read from a corpus at a time
PAIRS_AT_ONCE = 256  # scored by a cross-encoder at a time
ROWS_AT_ONCE = 256
ROWS_RESCORED_AT_ONCE = 16  # a row has its positives and up to a hundred candidates to score
SAMPLED, ALIKE = 8, 0.99  # stored vectors that are compared with the model's; the lowest cosine allowed


@dataclass(frozen=True)
class Mining:
    """The rule that picks negatives."""

    method: str = "bm25"  # "bm25", "dense" (an embedding model) or "both", in turns
    choice: Choice = field(default_factory=Choice)
    same_document: str | None = None  # metadata field; equal values mean the same document
    approximate_above: int = EXACT_UP_TO  # candidates; an index searches more than these


def mine(
    inputs: list[Path],
    output: Path,
    mining: Mining,
    *,
    corpus: Iterable[Chunk] | None = None,
    stored_vectors: bool = False,
    encoder: Encoder | None = None,
    searcher: Searcher | None = None,
    scorer: PairScorer | None = None,
    cache: Path | None = None,
    positive: str | None = None,
    columns: dict[str, str] | None = None,
) -> int:
    """Writes the rows of all inputs, in order, with their hard negatives to `output`; returns the number of negatives.

    corpus: texts to choose from (default: the positives of all inputs). stored_vectors: the corpus brings embeddings,
    which must be the encoder's. encoder: the embedding model of methods "dense" and "both". searcher: searches its
    vectors exactly, in place of numpy. scorer: a cross-encoder; its scores rank the candidates and become
    teacher_scores. cache: folder for embeddings and scores (default: a hidden one beside the output, whose files of
    these models are deleted when the output is whole). A killed run resumes from it.

    Memory: the corpus, about 100 bytes a text, and what bm25.py and dense_search.py state; rows wait on disk. BadInput:
    all bad rows; rows with teacher_scores but no scorer; stored vectors of another model.
    """
    assert (encoder is None) == (mining.method == "bm25")
    names = source_names(inputs)
    folder = cache or output.with_name(f".{output.name}.mining")
    with ExitStack() as stack:
        passages, queries, pairs = _open_caches(stack, folder, encoder, scorer, stored_vectors)
        texts = Corpus(mining.same_document)
        if corpus is not None:
            _read_corpus(corpus, texts, encoder, passages if stored_vectors else None)
        waiting = stack.enter_context(spool_beside(output))
        count = _read_rows(names, positive, columns, texts, waiting, corpus is None, scorer is not None)
        texts.seal()
        if not texts.candidates:
            raise BadInput("the corpus holds no text to choose from")
        say(f"{count:,} rows, {texts.candidates:,} texts to choose from, {mining.choice.k} for each row")
        rankers: list[Ranker] = [Bm25(texts)] if mining.method != "dense" else []
        if encoder:
            rankers.append(Dense(texts, passages, queries, mining.approximate_above, searcher))
        if scorer:
            pairs_at_most = count * len(rankers) * (mining.choice.stop - mining.choice.first)
            say(f"the cross-encoder scores up to {pairs_at_most:,} candidates (--range A:B says how many of a row)")
        miner = Miner(texts, mining.choice, rankers, pairs)
        waiting.seek(0)
        with whole_file(output) as lines:
            at_once = ROWS_RESCORED_AT_ONCE if scorer else ROWS_AT_ONCE
            rows = (Record(**json.loads(line)) for line in waiting)
            for records in batches(track(rows, "mining", count), at_once):
                miner.add(records)
                lines.writelines(record.to_json() + "\n" for record in records)
        _print_summary(miner, rankers, encoder, scorer)
    if cache is None:
        _remove(folder, [model.digest for model in (encoder, scorer) if model])
    result(f"{output}: {count:,} records with {miner.counts.mined:,} mined hard negatives")
    return miner.counts.mined


def _remove(folder: Path, digests: list[str]) -> None:
    """Removes the files of these models; those of others, from which a killed run resumes, stay."""
    for digest in digests:
        shutil.rmtree(folder / digest, ignore_errors=True)
    with suppress(OSError):  # not empty, or never made
        folder.rmdir()


def _open_caches(
    stack: ExitStack, folder: Path, encoder: Encoder | None, scorer: PairScorer | None, stored_vectors: bool
) -> tuple[VectorCache | None, VectorCache | None, VectorCache | None]:
    """Opens the embeddings of passages and queries, and the scores of pairs; None without their model."""

    def open_cache(model, name: str, size: int, compute, block: int) -> VectorCache:
        return stack.enter_context(closing(VectorCache(folder / model.digest, name, size, compute, block)))

    passages = queries = pairs = None
    if encoder:
        name = "stored-passages" if stored_vectors else "passages"
        passages = open_cache(encoder, name, encoder.size, encoder.passages, encoder.texts_at_once)
        queries = open_cache(encoder, "queries", encoder.size, encoder.queries, encoder.texts_at_once)
    if scorer:
        pairs = open_cache(scorer, "pairs", 1, scorer.scores, PAIRS_AT_ONCE)
    return passages, queries, pairs


def _read_corpus(chunks: Iterable[Chunk], texts: Corpus, encoder: Encoder | None, vectors: VectorCache | None) -> None:
    """Adds the chunks to the corpus. vectors: receives the embeddings that the chunks bring; None: they bring none."""
    for number, block in enumerate(batches(track(chunks, "reading the corpus"), CHUNKS_AT_ONCE)):
        for chunk in block:
            texts.add(chunk.text, chunk.id, chunk.metadata)
        if vectors is not None:
            stored = _stored(block, encoder)
            if number == 0:
                _check_stored(block[:SAMPLED], stored[:SAMPLED], encoder)
            vectors.put([chunk.text for chunk in block], stored)


def _stored(chunks: list[Chunk], encoder: Encoder) -> np.ndarray:
    """Returns the vectors of a store, (n, d) float32, normalised if the model's are."""
    if sizes := {len(chunk.embedding) for chunk in chunks} - {encoder.size}:
        raise BadInput(
            f"--stored-vectors: the store's have {sizes.pop()} numbers, the model's {encoder.size}; "
            "name the model that made them, or leave the flag out to embed the texts anew"
        )
    vectors = np.stack([chunk.embedding for chunk in chunks]).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12) if encoder.unit else vectors


def _check_stored(chunks: list[Chunk], stored: np.ndarray, encoder: Encoder) -> None:
    computed, _ = encoder.passages([chunk.text for chunk in chunks])
    lengths = np.linalg.norm(computed, axis=1) * np.linalg.norm(stored, axis=1)
    if (least := float(((computed * stored).sum(axis=1) / lengths.clip(1e-12)).min())) < ALIKE:
        raise BadInput(
            f"--stored-vectors: the store's are not what --model gives (cosine {least:.3f} among {len(chunks)} sampled "
            "texts): another model, prompt or length; leave the flag out to embed the texts anew"
        )


def _read_rows(
    names: dict[Path, str],
    positive: str | None,
    columns: dict[str, str] | None,
    texts: Corpus,
    waiting: IO[str],
    choose: bool,
    scored: bool,
) -> int:
    """Reads the rows into `waiting`, as JSON lines, and their positives into the corpus; returns their number."""
    problems = Problems()
    count = with_teacher = 0
    for path, name in names.items():
        rows = read_records(path, positive=positive, columns=columns, source=name, problems=problems)
        for record in track(rows, f"reading {path.name}"):
            texts.add_row(record, choose)
            waiting.write(record.to_json() + "\n")
            count += 1
            with_teacher += record.teacher_scores is not None
    if with_teacher and not scored:
        mend = "add --rescore, or leave them out"
        problems.file(f"{with_teacher:,} rows have teacher_scores, which mined texts would lack; {mend}")
    problems.check()
    if with_teacher:
        say(f"{with_teacher:,} rows had teacher_scores; those of the cross-encoder replace them")
    return count


def _print_summary(miner: Miner, rankers: list[Ranker], encoder: Encoder | None, scorer: PairScorer | None) -> None:
    for note in miner.notes():
        say(note)
    owner = "--max-len; by default the model's own limit"
    cut = [(count, what, encoder, owner) for ranker in rankers for what, count in ranker.cut().items()]
    cut.append((len(miner.counts.cut_pairs), "pairs", scorer, "the limit of the --rescore model"))
    for count, what, model, limit in cut:
        if count:
            say(f"{count:,} {what} are longer than {model.max_len} tokens ({limit}): only their beginning was read")
