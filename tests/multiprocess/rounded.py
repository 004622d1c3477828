"""Weights that ZeRO-3 gathers in the dtype of the products: the same gradient bit by bit, from half of the bytes."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch

from trainer.engine import zero_engine

TABLE = "embeddings.word_embeddings.weight"  # looked up, so never rounded


def run_cell(group, cell: dict) -> dict:
    """One step in bf16 as the engine makes it, with everything gathered in fp32, and with a table rounded too."""
    whole_runtime = group.runtime
    group.runtime = replace(whole_runtime, dtype=torch.bfloat16)
    try:
        with group.job(cell["run"], cell["chunks"], "train.precision=bf16", sgd=False) as job:
            return _compare(group, job)
    finally:
        group.runtime = whole_runtime


def _compare(group, job) -> dict:
    engine, batch = job.engine, group.batch(job, 0)
    published = {name: engine.read(name) for name in engine.named}
    found, rounded = {}, engine._rounded
    table = engine.embedder.parameters_by_name()[TABLE]
    for case, chosen in (("as it is", rounded), ("in fp32", set()), ("a table too", {*rounded, table})):
        for parameter in {*rounded, table}:
            vars(parameter).pop(zero_engine.GATHERED_AS, None)
        engine._rounded = chosen
        engine._send_rounded(chosen)
        with _counted() as numbers:
            gradient, _, _ = group.gradient(job, batch)
        engine.apply(0.0)  # done with it: the weights stay
        found[case] = gradient
        found[f"{case}, numbers"] = numbers
    engine._rounded = rounded
    left = job.data.make_batch(batch.row_ids, job.data.rows.take(batch.row_ids), [0] * batch.rows, batch.rows, 1)
    with torch.no_grad():  # weights that a pass leaves behind are rounded: reading them gathers them anew
        ids = [token for text in left.tokens for token in text]
        engine.embed(torch.tensor(ids), [len(text) for text in left.tokens], 0)
    read = {name: engine.read(name) for name in engine.named}
    return {
        "same": _equal(found["as it is"], found["in fp32"]),
        "planted": not _equal(found["a table too"], found["in fp32"]),
        "read": _equal(read, published),
        "digits": any(not torch.equal(t, t.bfloat16().float()) for t in published.values()),
        "numbers": found["as it is, numbers"],
        "numbers_fp32": found["in fp32, numbers"],
    }


def _equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@contextmanager
def _counted():
    """Counts the numbers that this rank hands to gathers of weights, by dtype."""
    from deepspeed.runtime.zero import partition_parameters as partitions

    numbers, gather = Counter(), partitions._dist_allgather_fn

    def counting(mine, *args):
        numbers[str(mine.dtype).removeprefix("torch.")] += mine.numel()
        return gather(mine, *args)

    with patch.object(partitions, "_dist_allgather_fn", counting):
        yield numbers
