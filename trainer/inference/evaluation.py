"""Retrieval metrics of a model, and two models compared on the same queries."""

import numpy as np

from data_prep.reading.retrieval_sets import RetrievalSet
from trainer.config.sections import ModelConfig
from trainer.engine.protocol import Engine
from trainer.inference.encode import encode
from trainer.inference.metrics import METRICS, paired_bootstrap, rank_documents, score_run
from trainer.inference.text_encoder import TextEncoder


def evaluate_engine(engine: Engine, tokenizer, spec, data: RetrievalSet) -> dict[str, dict[str, float]] | None:
    """Per-query metrics of the model an engine holds; on rank 0, None elsewhere. Collective: all ranks embed."""
    queries = encode(engine, tokenizer, data.query_texts, spec.rules.query_prompt, spec.rules.query_max_len)
    documents = encode(engine, tokenizer, data.doc_texts, spec.rules.passage_prompt, spec.rules.passage_max_len)
    if engine.world.rank:
        return None
    return score_run(data.qrels, rank_documents(queries.numpy(), documents.numpy(), data))


def evaluate_folder(config: ModelConfig, data: RetrievalSet, device: str = "auto") -> dict[str, dict[str, float]]:
    """Returns per-query metrics of a model folder or hub id, in one process."""
    encoder = TextEncoder(config, device)
    return evaluate_engine(*encoder.loaded, encoder.spec, data)


def compare(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> dict[str, dict]:
    """Returns metric -> base, tuned, difference and its 95 % interval over the same queries."""
    table = {}
    for name in METRICS:
        base = np.array([before[query][name] for query in before])
        tuned = np.array([after[query][name] for query in before])
        low, high = paired_bootstrap(base, tuned)
        table[name] = {
            "base": float(base.mean()),
            "tuned": float(tuned.mean()),
            "difference": float((tuned - base).mean()),
            "interval_95": [low, high],
        }
    return table
