"""Memory while many chunks are read."""

import numpy as np
import psutil

from data_prep.stores.base import PAGE, Chunk
from data_prep.stores.conformance.place import Place, expect

SIZE, WORDS = 384, 150  # as all-MiniLM-L6-v2; about 1 KB of text
LIMIT = 300 * 2**20  # bytes that reading may take, whatever the number of chunks


def read_many(place: Place, count: int) -> str:
    """Writes chunks and reads them with their vectors. Broken: one is missing or read twice, or memory grows."""
    rng, name, memory = np.random.default_rng(0), place.name(), psutil.Process().memory_info
    with place.store() as store:
        written = store.create(name, SIZE, {})
        for start in range(0, count, PAGE):
            written.upsert([_chunk(i, rng) for i in range(start, min(start + PAGE, count))])
        written.finish()
    with place.open(name) as collection:
        seen = bytearray(count)
        before = peak = memory().rss
        for done, chunk in enumerate(collection.chunks(embeddings=True)):
            seen[chunk.metadata["number"]] += 1
            if done % PAGE == 0:
                peak = max(peak, memory().rss)
    expect(seen == b"\x01" * count, "a chunk is missing or was read twice")
    grown = f"memory grew by {(peak - before) / 2**20:.0f} MiB while {count:,} chunks were read"
    expect(peak - before < LIMIT, f"{grown}; at most {LIMIT / 2**20:.0f}")
    return grown


def _chunk(i: int, rng: np.random.Generator) -> Chunk:
    text = f"chunk {i} " + " ".join(f"word{n}" for n in rng.integers(0, 5000, WORDS))
    return Chunk(str(i), text, {"number": i, "kind": f"k{i % 7}"}, rng.standard_normal(SIZE).astype(np.float32))
