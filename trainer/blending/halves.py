"""Two halves of a retrieval set's queries: one chooses, the other reports."""

import hashlib

from data_prep.common.errors import BadInput
from data_prep.reading.retrieval_sets import RetrievalSet
from trainer.run_dir.queries import together

Halves = tuple[list[str], list[str]]  # ids of the queries that choose, and of those that report


def halves_of(data: RetrievalSet, seed: int = 0) -> Halves:
    """Splits the queries of a set. Raises BadInput where no query is left to report.

    Queries with a relevant document in common, directly or through others, stay together: the half that reports has
    seen none of the documents that the other half was chosen by. Groups go to the smaller half so far, in the order of
    a seeded hash of their smallest query id.
    """
    halves: Halves = ([], [])
    for group in sorted(together(data.query_ids, data.qrels), key=lambda group: _hash(min(group), seed)):
        min(halves, key=len).extend(group)
    if not halves[1]:
        raise BadInput(
            f"{data.name}: its {len(data.query_ids):,} queries share their relevant documents, so they cannot be "
            "split in two halves, one to choose by and one to report; name a set with more queries"
        )
    return sorted(halves[0]), sorted(halves[1])


def _hash(query: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{query}".encode("utf-8", "surrogatepass")).digest()
