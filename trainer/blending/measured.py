"""Metrics per share in a file beside the output, so that a killed blend goes on where it was."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from data_prep.common.console import say
from data_prep.common.errors import BadInput
from data_prep.common.files import whole_file
from data_prep.reading.retrieval_sets import RetrievalSet
from data_prep.texts.tokenizer_rules import read_object
from trainer.evaluation.metric_names import METRICS

FORMAT = 1  # of the file; other metrics of the same name would be another format
PerQuery = dict[str, dict[str, float]]  # query id -> metric -> value


class Measured:
    """The file. Rows are by set and share; a file of other models is begun anew."""

    def __init__(self, path: Path, models: str, metrics: Sequence[str] = METRICS):
        """models: hash of all that decides an embedding. metrics: of every query. Raises BadInput for a file of
        something else."""
        self.path, self.metrics, values = path, metrics, read_object(path)
        if values and not {"blend", "models", "sets"} <= values.keys():
            raise BadInput(f"{path}: is no record of trainer.blend, which would replace it; move it, or name another")
        fits = values.get("blend") == FORMAT and values.get("models") == models
        if values and not fits:
            say(f"{path}: was measured on other models or by another version; measuring anew")
        self.values = values if fits else {"blend": FORMAT, "models": models, "sets": {}}

    def get(self, key: str, data: RetrievalSet, share: float) -> PerQuery | None:
        """Returns the metrics of a share on a set, or None where they are not measured. key: key_of(data)."""
        columns = self.values["sets"].get(key, {}).get(repr(share))
        if columns is None or not columns.keys() >= set(self.metrics):
            return None
        rows = zip(*(columns[name] for name in self.metrics))
        return {query: dict(zip(self.metrics, row)) for query, row in zip(data.query_ids, rows, strict=True)}

    def put(self, key: str, data: RetrievalSet, share: float, per_query: PerQuery) -> None:
        columns = {name: [per_query[query][name] for query in data.query_ids] for name in self.metrics}
        self.values["sets"].setdefault(key, {})[repr(share)] = columns
        with whole_file(self.path) as file:
            json.dump(self.values, file, separators=(",", ":"))


def key_of(data: RetrievalSet) -> str:
    """Returns the sha256 of a set's texts, ids and judgements."""
    facts = [data.doc_ids, data.doc_texts, data.query_ids, data.query_texts, data.ignore_identical_ids]
    judged = [[query, sorted(data.qrels[query].items())] for query in data.query_ids]
    return hashlib.sha256(json.dumps([facts, judged]).encode()).hexdigest()
