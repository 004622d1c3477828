"""Work over ranks that rank 0 leads; and mining in this way.

Rank 0 mines, and all ranks embed its texts and search its corpus, each a share. Rank 0 holds the corpus, the cache of
vectors and the rows. Every rank keeps its share of the corpus's vectors while they are searched: 4 bytes a number, in
memory or in a mapped file (kept.py), and what search.py states.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from data_prep.common.errors import BadInput
from data_prep.texts.tokenizer_rules import read_object
from trainer.distributed.collectives import World, known
from trainer.distributed.device import precision_name
from trainer.inference.encode import Encoded, gather, in_order
from trainer.inference.kept import keep
from trainer.inference.text_encoder import TextEncoder
from trainer.ranking.keys import NOTHING, numbers_of, scores_of
from trainer.ranking.search import Pairs, Share, search

SENT = 2**22  # numbers of vectors that travel at a time
Found = tuple[np.ndarray, np.ndarray]  # of one query: numbers of texts, best first, and their scores


class Led:
    """Ranks that rank 0 leads: `lead` is called on all of them, and rank 0 runs methods on each by `_on_all`."""

    _apart = False  # a call failed on this rank: the others may be in the middle of it

    def __init__(self, world: World):
        self.world = world

    def lead(self, work: Callable[[], Any]) -> Any:
        """Runs `work` on rank 0, whose calls the other ranks answer until it ends; raises its error on every rank.
        Returns its result on rank 0, None on the others."""
        result = error = None
        if self.world.rank == 0:
            try:
                result = work()
            except Exception as caught:
                if self.world.size == 1 or self._apart:
                    raise
                error = known(caught)
            self.world.from_first(("end", (error,)))
        else:
            error = self._answer()
        if error is not None:
            error.on_every_rank = True
            raise error
        return result

    def _answer(self) -> Exception | None:
        """Runs what rank 0 calls; returns its error, if it ended in one."""
        while True:
            name, values = self.world.from_first(None)
            if name == "end":
                return values[0]
            getattr(self, name)(*values)

    def _on_all(self, name: str, *values) -> Any:
        """Runs a method on every rank; returns rank 0's result. values: picklable."""
        self.world.from_first((name, values))
        try:
            return getattr(self, name)(*values)
        except Exception:
            self._apart = True
            raise


class Team(Led):
    """A dense_search.Encoder and dense_search.Searcher whose calls, made by rank 0, run on every rank.

    Embeddings are normalised where the folder states cosine similarity, or none. Raises BadInput for another similarity
    than cosine and dot. Collective.
    """

    texts_at_once = 8192  # enough for each rank to get some, and for texts of one length to come together
    _share: Share | None = None

    def __init__(self, encoder: TextEncoder):
        self.encoder, self.spec = encoder, encoder.spec
        self.unit = self.spec.normalize or _similarity(encoder) == "cosine"
        self.engine, _ = encoder.loaded
        super().__init__(self.engine.world)
        self.size = encoder.size
        self.max_len = self.spec.rules.max_len
        facts = encoder.fingerprint, str(self.spec.rules), str(self.unit), precision_name(self.engine.dtype)
        self.digest = hashlib.blake2b("\n".join(facts).encode(), digest_size=8).hexdigest()

    def queries(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns (n, size) float32, and (n,) bool: the text was truncated. Rank 0."""
        return self._on_all("_embed", "query_share", texts)

    def passages(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Same as queries(), of documents."""
        return self._on_all("_embed", "passage_share", texts)

    def _embed(self, kind: str, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded: Encoded = getattr(self.encoder, kind)(texts)
        vectors, truncated = gather(self.engine, encoded), in_order(self.engine, encoded.truncated, encoded.rows)
        if self.unit and not self.spec.normalize:
            vectors = normalize(vectors, dim=1)
        return vectors.numpy(), truncated.numpy()

    def hold(self, read: Callable[[int, int], np.ndarray], count: int) -> None:
        """Gives every rank its share of a corpus. read(first, last): vectors of these texts, float32. Rank 0."""
        self._read = read
        self._on_all("_hold", count)

    def _hold(self, count: int) -> None:
        world, d, wire = self.world, self.size, self.engine.device
        numbers = torch.arange(world.rank, count, world.size)
        vectors, done, step = keep(len(numbers), d), 0, max(1, SENT // d)
        for first in range(0, count, step):
            last = min(count, first + step)
            part = (
                torch.from_numpy(np.array(self._read(first, last))) if world.rank == 0 else torch.empty(last - first, d)
            )
            mine = numbers[(numbers >= first) & (numbers < last)] - first
            vectors[done : done + len(mine)] = world.broadcast(part.to(wire)).cpu()[mine]
            done += len(mine)
        self._share = Share(vectors, numbers)

    def search(self, queries: np.ndarray, banned: list[np.ndarray], depth: int) -> list[Found]:
        """Returns the `depth` best texts for each query: equal scores by number. queries: (n, size) float32. banned:
        numbers of the texts that each must not find. Rank 0."""
        counts = [len(numbers) for numbers in banned]
        rows = np.repeat(np.arange(len(banned)), counts)
        return self._on_all("_search", queries, rows, np.concatenate([np.empty(0, np.int64), *banned]), depth)

    def _search(self, queries: np.ndarray, rows: np.ndarray, numbers: np.ndarray, depth: int) -> list[Found]:
        pairs = Pairs(torch.from_numpy(rows), torch.from_numpy(numbers))
        found: list[Found] = []
        for _, keys in search(self.world, torch.from_numpy(queries), self._share, depth, self.engine.device, pairs):
            for row in keys.cpu() if self.world.rank == 0 else ():
                row = row[row != NOTHING]
                found.append((numbers_of(row).numpy(), scores_of(row).numpy()))
        return found


def _similarity(encoder: TextEncoder) -> str:
    """Returns the similarity that a folder states, cosine by default. Raises BadInput for others."""
    stated = read_object(Path(encoder.folder) / "config_sentence_transformers.json").get("similarity_fn_name")
    if stated not in (None, "cosine", "dot"):
        path = encoder.config.path
        raise BadInput(f"--model {path}: its similarity is {stated}; only cosine and dot can be mined with")
    return stated or "cosine"
