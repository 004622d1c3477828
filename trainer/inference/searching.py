"""Search with a model, in memory or in a store that holds its vectors."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch

from data_prep.common.console import say
from data_prep.common.errors import BadInput
from data_prep.stores.base import Chunk, Collection
from trainer.inference.encode import gather_lengths
from trainer.inference.store_record import FINGERPRINT, MODEL, STATE, UNFINISHED
from trainer.inference.text_encoder import TextEncoder
from trainer.ranking.keys import NOTHING, numbers_of, scores_of
from trainer.ranking.search import Share
from trainer.ranking.search import search as best_documents

PROBED = 8  # chunks embedded again to see whose vectors a collection holds
LENGTH = 1e-2  # by which lengths may differ: a store of 16 bits rounds
SAME = 0.99  # cosine: the same model with another length or runtime stays above, other models far below
NEAR = 0.999  # cosine: in 16 bits the same model stays above


@dataclass(frozen=True)
class Hit:
    """A chunk that a query matched."""

    id: str
    text: str
    similarity: float  # cosine of query and chunk, -1 to 1


class Encoder(Protocol):
    """A model whose vectors a collection may hold."""

    name: str  # for messages
    fingerprint: str  # as reindex records it
    identity: dict[str, str]  # facts that name it
    query_prompt: str
    passage_prompt: str
    lengths_count: bool  # vectors of another length than the store's are not the store's
    dim: int | None  # the first numbers alone, normalised again

    @property
    def size(self) -> int: ...
    def queries(self, texts: list[str]) -> np.ndarray: ...
    def passages(self, texts: list[str], prompt: str | None = None) -> np.ndarray: ...


Searcher = Callable[[list[str], int], list[list[Hit]]]


def in_memory(encoder: TextEncoder, ids: list[str], texts: list[str]) -> Searcher:
    """Returns an exact search over texts, which are embedded now, by all ranks; equal scores stay in their order.
    Collective, and so are its searches."""
    documents = encoder.passage_share(texts)
    engine, _ = encoder.loaded
    share, lengths = Share(documents.vectors, documents.rows), gather_lengths(engine, documents).numpy()

    def search(queries: list[str], k: int) -> list[list[Hit]]:
        vectors = encoder.queries(queries)
        results = []
        for first, keys in best_documents(engine.world, torch.from_numpy(vectors), share, k, engine.device):
            for length, row in zip(np.linalg.norm(vectors[first:], axis=1), keys.cpu()):
                row = row[row != NOTHING]
                found = zip(numbers_of(row).tolist(), scores_of(row).tolist())
                cosines = ((i, score / max(float(length * lengths[i]), 1e-12)) for i, score in found)
                results.append([Hit(ids[i], texts[i], cosine) for i, cosine in cosines])
        return results

    return search


def in_store(encoder: Encoder, collection: Collection, where: dict | None) -> Searcher:
    """Returns the store's own search over its vectors."""

    def search(queries: list[str], k: int) -> list[list[Hit]]:
        vectors = encoder.queries(queries)
        answers = collection.query(vectors, k, where)
        return [
            [Hit(chunk.id, chunk.text, _cosine(vector, chunk.embedding)) for chunk in answer]
            for vector, answer in zip(vectors, answers)
        ]

    return search


def over_collection(encoder: TextEncoder, collection: Collection, where: dict | None) -> Searcher:
    """Returns the store's search if its vectors are this model's; else its texts are embedded here, with a note."""
    if collection.about.get(STATE) == UNFINISHED:
        say(f"note: {collection.name} is unfinished: reindex was stopped before its end")
    reason = mismatch(encoder, collection)
    if not reason:
        return in_store(encoder, collection, where)
    chunks = [(chunk.id, chunk.text) for chunk in collection.chunks(where)]
    if not chunks:
        raise BadInput(f"--collection {collection.name}: no chunk" + (" fits --where" if where else ""))
    say(f"{collection.name} {reason}: embedding its {len(chunks):,} texts here (python -m trainer.reindex stores them)")
    return in_memory(encoder, *map(list, zip(*chunks)))


def mismatch(encoder: Encoder, collection: Collection) -> str:
    """Returns why the collection's vectors are not searched as this model's, or an empty string: reindex recorded that
    they are its, or a few chunks are embedded again and compared. Sets encoder.dim where only the first numbers are
    stored."""
    size, facts, model = collection.size, collection.about, encoder.name
    if size is None:
        return "holds no vectors that can be searched"
    if size > encoder.size:
        return f"holds no vectors of {model} (they have {size} numbers, the model makes {encoder.size})"
    if FINGERPRINT not in facts:
        reason = _compare(encoder, collection, size)
    elif facts[FINGERPRINT] == encoder.fingerprint:
        reason = ""
    else:
        files = ", from other files than it has now" if facts.get(MODEL) == model else ""
        reason = f"holds no vectors of {model} (reindex recorded those of {facts.get(MODEL, 'another model')}{files})"
    if not reason:
        encoder.dim = size if size < encoder.size else None
    return reason


def _compare(encoder: Encoder, collection: Collection, size: int) -> str:
    """Returns how the vectors of the first chunks differ from the model's, or an empty string if they do not."""
    model, prompt = encoder.name, encoder.passage_prompt
    stored = list(islice(collection.chunks(page=PROBED, embeddings=True), PROBED))
    if not stored:
        return "holds no chunk"
    texts = [chunk.text for chunk in stored]
    own = encoder.passages(texts)
    cosines = _cosines(own, stored, size)
    if (least := min(cosines)) >= SAME:
        if least < NEAR:
            near = f"{len(stored)} chunks looked at have a cosine of {least:.4f} or more with the model's"
            little = "a model that training changed little has too (python -m trainer.reindex records whose they are)"
            say(f"note: the vectors of {collection.name} are searched as those of {model}: {near}; {little}")
        return _other_lengths(own, stored, model) if encoder.lengths_count and not collection.normalises else ""
    alike = sum(cosine >= SAME for cosine in cosines)
    if prompt and min(_cosines(encoder.passages(texts, prompt=""), stored, size)) >= SAME:
        option = f'--passage-prompt "" searches them, {prompt!r} is the model\'s own'
        return f"holds vectors of {model} that were made without its passage prompt ({option})"
    if alike:
        others = "the others are of longer texts, of texts that changed since, or another model's"
        same = f"cosine {SAME} or more: {alike} of {len(stored)} chunks looked at"
        return f"holds vectors of {model} for some texts only ({same}; {others})"
    part = f" (of {own.shape[1]} numbers the first {size})" if own.shape[1] > size else ""
    unknown = f"none of {len(stored)} chunks looked at has this model's{part}, and no record of reindex says whose"
    unknown += " they are"
    return f"holds no vectors of {model} ({unknown}; of this model they would have another prompt or text)"


def _cosines(own: np.ndarray, stored: list[Chunk], size: int) -> list[float]:
    """Returns the cosine of each chunk's vector with the model's, or with the first `size` numbers of that."""
    return [_cosine(vector[:size], chunk.embedding) for vector, chunk in zip(own, stored)]


def _other_lengths(own: np.ndarray, stored: list[Chunk], model: str) -> str:
    """Returns how the lengths of vectors differ from the model's, or an empty string. Of the first numbers alone the
    model states no length."""
    there = np.array([chunk.embedding for chunk in stored])
    mine, its = (np.linalg.norm(vectors, axis=1) for vectors in (own, there))
    if own.shape != there.shape or (np.abs(mine / its.clip(min=1e-12) - 1) <= LENGTH).all():
        return ""
    lengths = f"{its[0]:.3g} in the store, {mine[0]:.3g} from the model"
    return f"holds vectors of another length than those of {model} ({lengths}), so that they were changed on the way"


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / length if length else 0.0
