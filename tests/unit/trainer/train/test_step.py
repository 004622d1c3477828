"""The two-pass step in one process: the same gradient at every memory budget, replay of dropout, masks at work."""

import math
from collections import defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep.records import Record
from data_prep.sharding.build import shard
from data_prep.sharding.tokenise import TokenOptions
from data_prep.shards.folder import open_shards
from tests import tiny
from tests.multiprocess.dense import relative_error
from tests.unit.data_prep.helpers import write_records
from trainer.config.sections import DataConfig, LossConfig, ModelConfig, OptimConfig
from trainer.distributed.collectives import World
from trainer.engine.chunks import chunk_tokens, cost_of, kept_chunks, lay, make_chunks
from trainer.engine.torch_engine import TorchEngine
from trainer.loss.objective import Objective
from trainer.model.build import load_embedder
from trainer.planner.plan import BatchPlan
from trainer.train.data import TrainData
from trainer.train.step import compute_gradients

EVERYTHING = 10**6


@given(st.lists(st.integers(1, 60), max_size=60), st.integers(60, 300))
def test_chunks_hold_every_text_once_within_the_budget(lengths, budget):
    for packed in (False, True):
        chunks = make_chunks(lengths, budget, packed)
        assert sorted(i for chunk in chunks for i in chunk) == list(range(len(lengths)))
        assert all(cost_of(chunk, lengths, packed) <= budget for chunk in chunks)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(60, 300), st.integers(0, 5000))
def test_kept_chunks_fit_the_budget_and_one_more_would_not(lengths, chunk_budget, budget):
    sizes = [cost_of(chunk, lengths, False) for chunk in make_chunks(lengths, chunk_budget, False)]
    kept = kept_chunks(sizes, budget)
    used = sum(sizes[i] for i in kept)
    assert used <= budget
    assert all(used + size > budget for i, size in enumerate(sizes) if i not in kept)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=200), st.integers(64, 5000), st.integers(64, 4096))
def test_a_tight_budget_is_used_but_for_a_text_per_chunk(lengths, budget, most):
    costs = [cost_of(c, lengths, True) for c in make_chunks(lengths, chunk_tokens(most, budget), True)]
    kept = sum(costs[i] for i in kept_chunks(costs, budget))
    slack = max(lengths) * math.ceil(budget / most)  # a chunk ends before the text that no longer fits
    assert kept == sum(lengths) or kept > budget - slack - math.ceil(budget / most)


def test_a_chunk_of_few_texts_takes_no_place_of_a_large_one():
    assert kept_chunks([250, 240, 10], 256) == {0}
    assert kept_chunks([250, 240, 10], 260) == {0, 2}
    assert (chunk_tokens(2048, 3000), chunk_tokens(2048, 2048), chunk_tokens(2048, 300)) == (1500, 2048, 300)


def test_a_text_longer_than_the_budget_is_a_chunk_of_its_own():
    assert make_chunks([500, 10, 10], 100, False) == [[0], [1, 2]]


def engine_and_batch(folder, shards, dropout=0, rows=None):
    embedder, tokenizer, spec, _ = load_embedder(ModelConfig(path=str(folder), dropout=dropout))
    engine = TorchEngine(embedder, OptimConfig(), World(), torch.device("cpu"), None)
    engine.embedder.train(dropout != 0)
    plan = BatchPlan(tuple(open_shards(shards).train_sources()), 24, "f", 0)
    data = TrainData(DataConfig(train=str(shards)), spec, tokenizer, plan)
    records = rows or data.rows.take(range(24))
    batch = data.make_batch(list(range(len(records))), records, [0] * len(records), len(records), seed=5)
    return engine, batch


def gradients(engine, batch, tokens, **loss):
    stats = compute_gradients(engine, batch, Objective(LossConfig(**loss), True), tokens)
    return engine.gradients(), stats


@pytest.mark.parametrize("tokens", [64, 150, 400])
def test_the_gradient_is_the_same_at_every_memory_budget(tiny_bert, tiny_shards, tokens):
    engine, batch = engine_and_batch(tiny_bert, tiny_shards)
    whole, stats = gradients(engine, batch, EVERYTHING)
    tight, tight_stats = gradients(engine, batch, tokens)
    assert tight_stats.loss == pytest.approx(stats.loss, abs=1e-6)
    assert relative_error(tight, whole) < 1e-5


def test_dropout_is_replayed_exactly_where_a_chunk_is_embedded_twice(tiny_bert, tiny_shards, monkeypatch):
    engine, batch = engine_and_batch(tiny_bert, tiny_shards, dropout="model")
    monkeypatch.setattr("trainer.train.step.CHUNK_TOKENS", {"cpu": 150})  # the same chunks, kept or not
    kept, _ = gradients(engine, batch, EVERYTHING)
    monkeypatch.setattr("trainer.train.step.kept_chunks", lambda *_: set())
    replayed, _ = gradients(engine, batch, EVERYTHING)
    assert all(torch.equal(kept[name], replayed[name]) for name in kept)
    batch.seed += 1000
    other, _ = gradients(engine, batch, EVERYTHING)
    assert relative_error(other, kept) > 1e-3, "dropout is on, so another seed must give another gradient"


def test_duplicates_in_a_batch_are_masked_and_counted(tiny_bert, tiny_shards):
    texts = [" ".join(tiny.WORDS[i : i + 5]) for i in range(0, 40, 5)]
    records = [Record(query=texts[i], positives=[texts[i + 4]]) for i in range(4)]
    records.append(Record(query=tiny.WORDS[50], positives=[texts[4].upper()]))  # row 0's positive in capitals
    engine, batch = engine_and_batch(tiny_bert, tiny_shards, rows=records)
    with_mask = gradients(engine, batch, EVERYTHING)[1].values
    without = gradients(engine, batch, EVERYTHING, mask_duplicates=False)[1].values
    assert (with_mask["masked_negatives"], without["masked_negatives"]) == (2, 0)
    assert with_mask["negatives_per_query"] == pytest.approx(4 - 2 / 5)


@pytest.mark.parametrize(
    ("ids", "masked"),
    [
        (["aFCO6Wid", "afco6wid", "AFCO6WID", "aFCO6Wid "], 0),
        (["x1", "\uff581", "x\u00b9", "x1\u0301"], 0),
        (["x1", "X1", "x1", "X1"], 4),  # each of the four has one other row's positive of its document
    ],
)
def test_documents_are_masked_by_their_ids_to_the_letter(tiny_bert, tiny_shards, ids, masked):
    texts = [" ".join(tiny.WORDS[i : i + 5]) for i in range(0, 40, 5)]
    records = [Record(query=texts[i], positives=[texts[i + 4]], doc_ids=[name]) for i, name in enumerate(ids)]
    engine, batch = engine_and_batch(tiny_bert, tiny_shards, rows=records)
    assert gradients(engine, batch, EVERYTHING)[1].values["masked_negatives"] == masked


def test_logged_similarities_are_means_over_pairs(tiny_bert, tiny_shards):
    engine, batch = engine_and_batch(tiny_bert, tiny_shards)
    found = gradients(engine, batch, EVERYTHING, mask_duplicates=False)[1].values
    with torch.no_grad():
        texts = engine.embed(*lay(range(len(batch.tokens)), batch.tokens), seed=0)
    similarity = texts[: batch.rows] @ texts[batch.rows :].T
    positive = similarity.diagonal()
    assert found["positive_similarity"] == pytest.approx(positive.mean().item(), abs=1e-5)
    negative = (similarity.sum() - positive.sum()) / (similarity.numel() - batch.rows)
    assert found["negative_similarity"] == pytest.approx(negative.item(), abs=1e-5)


def test_every_epoch_draws_positives_anew_and_every_step_and_rank_other_dropout(tiny_bert, tmp_path):
    records = [Record(f"w{i}", [f"w{i} w{i + k}" for k in range(1, 5)]) for i in range(24)]
    shard([write_records(tmp_path / "rows.jsonl", records)], tmp_path / "shards", eval_fraction=0)
    _, tokenizer, spec, _ = load_embedder(ModelConfig(path=str(tiny_bert)))
    plan = BatchPlan(tuple(open_shards(tmp_path / "shards").train_sources()), 8, "f", 0)
    data = TrainData(DataConfig(train=str(tmp_path / "shards")), spec, tokenizer, plan)
    drawn, seeds = defaultdict(set), []
    for step in range(8 * plan.steps_per_epoch):
        batches = [data.batch(step, rank, 2) for rank in (0, 1)]
        for batch in batches:
            for row, key in zip(batch.row_ids, batch.documents.text.tolist()):
                drawn[row].add(key)
        seeds += [batch.seed for batch in batches]
    assert len(drawn) == 24 and min(map(len, drawn.values())) > 1
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("tokens", [False, True], ids=["texts", "tokens"])
def test_every_epoch_draws_hard_negatives_anew_with_their_scores_whatever_the_ranks(tiny_bert, tmp_path, tokens):
    """The n-th negative of a row is its number n, and so is its teacher's score; rows have 0 to 4 of them."""
    texts = [[f"w{i} w{100 + k}" for k in range(i % 5)] for i in range(24)]
    scores = [[9.0, *range(len(few))] for few in texts]
    made = [Record(f"w{i}", [f"w{i} w99"], few, teacher_scores=s) for i, (few, s) in enumerate(zip(texts, scores))]
    folder, model = tmp_path / "shards", ModelConfig(path=str(tiny_bert))
    options = TokenOptions(str(tiny_bert)) if tokens else None
    shard([write_records(tmp_path / "rows.jsonl", made)], folder, eval_fraction=0, tokens=options)
    _, tokenizer, spec, _ = load_embedder(model)
    plan = BatchPlan(
        tuple(open_shards(folder).train_sources()), 8, "f", 0, max_hard_negatives=2, negative_sampling="random"
    )
    data = TrainData(DataConfig(train=str(folder), max_hard_negatives=2), spec, tokenizer, plan)
    seen, ids = defaultdict(list), tokenizer.convert_tokens_to_ids
    for step in range(2 * plan.steps_per_epoch):
        of_row = {}
        for rank in range(3):
            batch = data.batch(step, rank, 3)
            negatives = batch.tokens[2 * batch.rows :]
            assert len(negatives) == len(batch.negative_row) == len(batch.teacher_negative)
            for row, text, score in zip(batch.negative_row.tolist(), negatives, batch.teacher_negative.tolist()):
                record = data.rows.take([batch.row_ids[row]])[0]
                assert text[1:-1] == ids(record.negatives[int(score)].split())
                of_row.setdefault(batch.row_ids[row], []).append(int(score))
        alone = data.batch(step, 0, 1)
        in_one = defaultdict(list)
        for row, score in zip(alone.negative_row.tolist(), alone.teacher_negative.tolist()):
            in_one[alone.row_ids[row]].append(int(score))
        assert of_row == in_one
        for row, few in of_row.items():
            seen[row].append(few)
    counts = {row: len(data.rows.take([row])[0].negatives) for row in seen}
    assert all(len(few) == min(2, counts[row]) for row, epochs in seen.items() for few in epochs)
    assert all({*one, *other} == set(range(counts[row])) for row, (one, other) in seen.items())


def test_other_positives_of_a_row_are_masked(tiny_bert, tiny_shards):
    words = tiny.WORDS
    records = [Record(query=words[0], positives=[words[1], words[2]]), Record(query=words[3], positives=[words[2]])]
    engine, batch = engine_and_batch(tiny_bert, tiny_shards, rows=records)
    assert gradients(engine, batch, EVERYTHING)[1].values["masked_negatives"] == 1
