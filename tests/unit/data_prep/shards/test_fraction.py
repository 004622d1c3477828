"""Shares of the train rows by document: nested, whole documents, and a plan of these rows alone."""

import json
from itertools import pairwise

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.common.errors import BadInput
from data_prep.records import id_key, text_key
from data_prep.shards.folder import open_shards
from data_prep.shards.fraction import rows_of_fraction, take_fraction
from data_prep.shards.shared_keys import by_source
from tests import tiny
from trainer.config.loading import parse_config
from trainer.planner.from_config import make_plan
from trainer.planner.plan import PLAN_VERSION
from trainer.preflight.inputs import Inputs
from trainer.run_dir.record import check_resumable, describe_run

SHARES = (0.1, 0.25, 0.5, 0.9, 1.0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """600 rows of 200 documents; every third row names its document by its text only. Two sources."""
    folder = tmp_path_factory.mktemp("fraction")
    rows = tiny.rows(600, negatives=False)
    for i, row in enumerate(rows):
        row["doc_ids"], row["positives"] = [f"d{i // 3}"], [f"text of {i // 3}"]
        row["source"] = "ab"[i // 3 % 2]
        if i // 3 % 3 == 0:
            del row["doc_ids"]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["shard", str(folder / "rows.jsonl"), "--output", str(folder / "s"), "--eval-fraction", "0"]) == 0
    return open_shards(folder / "s")


def config_of(shards, fraction: float):
    values = {"output_dir": "unused", "model": {"path": "m"}}
    values["data"] = {"train": str(shards.path), "fraction": fraction}
    return parse_config(values | {"train": {"batch_size": 8}}, "test")


@pytest.mark.parametrize("seed", [0, 1])
def test_shares_are_nested_and_hold_whole_documents(shards, seed):
    rows = shards.split("train")
    chosen = [rows_of_fraction(rows, share, seed) for share in SHARES]
    for smaller, larger in pairwise(chosen):
        assert not (smaller & ~larger).any() and smaller.sum() < larger.sum()
    assert chosen[-1].all()
    for share, of_share in zip(SHARES, chosen):
        documents = {}
        for record, taken in zip(rows, of_share):
            documents.setdefault(record.positives[0], set()).add(bool(taken))
        assert all(len(taken) == 1 for taken in documents.values())
        spread = 4 * np.sqrt(200 * share * (1 - share))  # documents, four standard deviations
        assert abs(of_share.sum() / 3 - 200 * share) <= spread


def test_another_seed_draws_others(shards):
    one, other = (rows_of_fraction(shards.split("train"), 0.5, seed) for seed in (0, 1))
    assert 0.3 < (one == other).mean() < 0.7


def test_the_keys_that_rows_of_a_share_have_in_common_are_those_of_these_rows(shards):
    rows, sources = shards.split("train"), shards.train_sources()
    chosen = rows_of_fraction(rows, 0.3, 5)
    taken, ids = take_fraction(sources, chosen), np.flatnonzero(chosen)
    keys = [{text_key(r.query), text_key(r.positives[0]), *map(id_key, r.doc_ids)} for r in rows.take(ids.tolist())]
    pairs = np.array([(row, key) for row, of_row in enumerate(keys) for key in of_row])
    names = [source.name for source in sources]
    source_of = np.array([names.index(r.source) for r in rows.take(ids.tolist())])
    expected = by_source(names, source_of, pairs[:, 0], pairs[:, 1])
    for ours, theirs in zip(taken, expected, strict=True):
        assert ours.rows.tolist() == ids[theirs.rows].tolist()
        assert members(ours.shared) == members(theirs.shared) and len(ours.shared) > 10


def members(shared) -> list[list[int]]:
    by_key = [shared.members(np.array([key]))[0].tolist() for key in range(len(shared))]
    of_rows = [shared.keys_of(np.array([row]))[1].size for row in range(int(shared.rows.max()) + 1)]
    return [*sorted(by_key), of_rows]


def test_a_plan_trains_on_the_rows_of_the_share_alone(shards):
    plan = Inputs(config_of(shards, 0.4)).plan
    seen = np.sort(np.concatenate([plan.batch(step)[1] for step in range(plan.steps_per_epoch)]))
    chosen = np.flatnonzero(rows_of_fraction(shards.split("train"), 0.4, 0))
    assert len(seen) == len(set(seen.tolist())) == plan.rows - plan.left_out_per_epoch
    assert set(seen.tolist()) <= set(chosen.tolist()) and plan.rows == len(chosen)


def test_the_whole_data_has_the_plan_it_always_had(shards):
    whole = Inputs(config_of(shards, 1.0)).plan
    plain = make_plan(config_of(shards, 1.0), shards.train_sources(), shards.fingerprint)
    for step in range(whole.steps_per_epoch):
        assert whole.batch(step)[1].tolist() == plain.batch(step)[1].tolist()


def test_a_run_goes_on_with_its_own_share_only(shards, tmp_path):
    config = config_of(shards, 0.25)
    record = describe_run(config, {}, shards.fingerprint, {"version": PLAN_VERSION})
    (tmp_path / "run.json").write_text(json.dumps(record))
    check_resumable(tmp_path, config, shards.fingerprint)
    with pytest.raises(BadInput, match=r"data\.fraction: 0\.25 in run\.json, 0\.5 now"):
        check_resumable(tmp_path, config_of(shards, 0.5), shards.fingerprint)
    del record["config"]["data"]["fraction"]  # of an earlier version
    (tmp_path / "run.json").write_text(json.dumps(record))
    check_resumable(tmp_path, config_of(shards, 1.0), shards.fingerprint)


def test_a_share_below_one_batch_is_refused_with_its_cause(shards):
    with pytest.raises(BadInput, match=r"rows in the share of 0\.01 \(data\.fraction\), fewer than one batch"):
        _ = Inputs(config_of(shards, 0.01)).plan
