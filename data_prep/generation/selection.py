"""The chunks that are asked about: read from the collection once, kept in a temporary file.

- One scan of the collection feeds all that follows: sample, count, questions, round-trip index, output.
- The chunks are JSON lines in a nameless file on the disk of the output; memory holds the ids of a sample only.
- `--limit` ends the scan early and `--sample` keeps candidates only, unless a round trip wants every chunk.
"""

import hashlib
import heapq
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.common.console import track
from data_prep.common.errors import BadInput
from data_prep.generation.answer import Answer
from data_prep.generation.answer_parser import Parsed, parse
from data_prep.generation.config import QuestionGenerationConfig
from data_prep.model_server.answer_cache import key_of
from data_prep.stores.base import Chunk, Collection


class Selection:
    """The chunks of one run. total: the number that is asked about."""

    def __init__(self, config: QuestionGenerationConfig, collection: Collection):
        self._config, self._lines = config, _JsonLines(config.output.parent)
        self._sampled: list[tuple[int, str]] = []  # heap of (-hash, id): the largest hash comes first
        whole, count = config.filters.round_trip is not None, 0
        chunks = islice(collection.chunks(config.where), None if whole else config.limit)
        for chunk in track(chunks, f"reading {config.collection_name}"):
            count += 1
            if self._draw(chunk.id) or whole:
                self._lines.append([chunk.id, chunk.text, chunk.metadata])
        if not count:
            why = f" fits --where {json.dumps(config.where)}" if config.where else ""
            raise BadInput(f"--collection {config.collection_name}: no chunk{why}")
        self.total = min(count, config.limit or config.sample or count)

    def _draw(self, chunk_id: str) -> bool:
        """Returns False if the id is not in the sample: those with the smallest hashes, so that samples nest."""
        if self._config.sample is None:
            return True
        digest = hashlib.blake2b(f"{self._config.seed}:{chunk_id}".encode(), digest_size=16).digest()
        entry = (-int.from_bytes(digest), chunk_id)
        heapq.heappush(self._sampled, entry)
        return len(self._sampled) <= self._config.sample or heapq.heappop(self._sampled) != entry

    def __iter__(self) -> Iterator[Chunk]:
        """Yields the chunks that are asked about, in the collection's order."""
        ids = {chunk_id for _, chunk_id in self._sampled}
        return islice((chunk for chunk in self.every_chunk() if not ids or chunk.id in ids), self._config.limit)

    def every_chunk(self) -> Iterator[Chunk]:
        """With a round trip: yields every chunk that a question could find, asked about or not."""
        return (Chunk(*values) for values in self._lines)


class ParsedAnswers:
    """Parsed answers on disk, found by the hash of the chunk's text. Each answer is parsed once per run."""

    def __init__(self, folder: Path):
        self._lines = _JsonLines(folder)
        self._offsets: dict[bytes, int] = {}  # hash of the chunk's text -> its line

    def add(self, text: str, parsed: Parsed) -> None:
        self._offsets[key_of(text)] = self._lines.append(asdict(parsed))

    def of(self, text: str, answer: Answer) -> Parsed:
        """Returns the parsed answer to a chunk of this text."""
        offset = self._offsets.get(key_of(text))
        if offset is None:
            self.add(text, parsed := parse(answer.text, answer.cut))
            return parsed
        values = self._lines.at(offset)
        return Parsed([tuple(pair) for pair in values["pairs"]], values["misfits"])


class _JsonLines:
    """JSON values in a nameless temporary file, read in order or by offset. The file goes with this object."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as the object)

    def append(self, value: Any) -> int:
        """Returns the offset of the value."""
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(value).encode() + b"\n")
        return offset

    def at(self, offset: int) -> Any:
        self._file.seek(offset)
        return json.loads(self._file.readline())

    def __iter__(self) -> Iterator[Any]:
        self._file.seek(0)
        return map(json.loads, self._file)
