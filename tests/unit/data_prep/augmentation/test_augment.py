"""Variants: they keep their parent, stay in its split, and are never a negative of it, from file to mask."""

import itertools
import json
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.augmentation.augment import augment
from data_prep.augmentation.rewriting import Changes
from data_prep.mining.miner import add_hard_negatives
from data_prep.reading.retrieval_sets import load_set
from data_prep.records import Record, is_variant, normalise, query_key
from data_prep.sharding.build import shard
from data_prep.shards.folder import open_shards
from tests.unit.data_prep.helpers import read_jsonl, run, write_jsonl, write_records
from trainer.config.loading import parse_config
from trainer.config.sections import DataConfig, ModelConfig
from trainer.loss.masks import duplicate_mask
from trainer.preflight.inputs import Inputs

EACH = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
MANY = Changes(typo_rate=0.5, case_rate=0.2, punctuation_rate=0.2)


def varied(tmp_path, records, name="made", **options):
    """The records of a file and their variants."""
    path = write_records(tmp_path / f"{name}.in.jsonl", records)
    augment([path], tmp_path / f"{name}.jsonl", **({"changes": MANY, "variants": 3} | options))
    return [Record(**row) for row in read_jsonl(tmp_path / f"{name}.jsonl")]


def questions(count=12):
    """Each asked in two rows with another positive, and half of the positives shared by the next question."""
    pairs = [(n, f"positive text {n + shift}") for n in range(count) for shift in (0, 1)]
    return [Record(f"question number{n} about heating", [text], ["negative"], metadata={"k": n}) for n, text in pairs]


def test_a_variant_keeps_all_of_its_parent_but_the_query(tmp_path):
    parents = [
        Record(
            "gas water heater", ["p", "q"], ["n"], 0.8, [0.1, 0.2, 0.3], "mine", "r7", ["d1", "d2"], {"module": "m"}
        ),
        Record("another question", ["r"]),
    ]
    made = varied(tmp_path, parents, score_scale=0.5)
    assert made[0] == parents[0]
    variants = [record for record in made if record.metadata.get("parent") == "r7"]
    assert [record.id for record in variants] == ["r7~1", "r7~2", "r7~3"]
    assert len({record.query for record in variants} | {parents[0].query}) == 4
    for record in variants:
        kinds = record.metadata.pop("augmented")
        assert kinds and set(kinds) <= {"neighbour", "drop", "double", "swap", "split", "join", "case", "punctuation"}
        assert record.metadata == {"module": "m", "parent": "r7", "parent_query": "gas water heater"}
        kept = ("positives", "negatives", "teacher_scores", "source", "doc_ids")
        assert all(getattr(record, name) == getattr(parents[0], name) for name in kept)
        assert record.score == 0.4
    assert all(record.score is None for record in made[4:])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        varied(tmp_path, questions(), name, seed=seed)
    one, two, three = ((tmp_path / f"{name}.jsonl").read_text() for name in ("one", "two", "three"))
    assert one.replace("one.in", "two.in") == two
    assert one.replace("one.in", "three.in") != three
    # a row's variants do not hang on the rows around it
    alone = varied(tmp_path, questions()[8:10], "alone")
    whole = [json.loads(line)["query"] for line in one.splitlines()]
    assert [record.query for record in alone] == whole[8 * 4 : 10 * 4]


letters = st.text("ab", min_size=4, max_size=6)


@EACH
@given(st.lists(st.tuples(letters, letters), min_size=1, max_size=15), st.integers(0, 5))
def test_a_variant_is_never_another_question_nor_its_own_answer(tmp_path, rows, seed):
    """With two letters, typos of one question often are another question."""
    made = []
    try:
        made = varied(tmp_path, [Record(query, [f"{answer} x", query]) for query, answer in rows], seed=seed)
    except ValueError as error:
        assert "no variant from" in str(error)
    asked = {}
    for record in made:
        assert asked.setdefault(normalise(record.query), query_key(record)) == query_key(record)
        if is_variant(record):
            assert normalise(record.query) not in [normalise(text) for text in record.positives]


@pytest.mark.parametrize("split_by", [None, "k"])
def test_every_variant_is_in_its_parents_split(tmp_path, split_by):
    records = [Record(f"question{n} about heating", [f"answer {n}"], metadata={"k": n}) for n in range(60)]
    varied(tmp_path, records)
    shard([tmp_path / "made.jsonl"], tmp_path / "s", eval_fraction=0.3, split_by=split_by)
    shards = open_shards(tmp_path / "s")
    splits = {
        name: [record.metadata.get("parent", record.id) for record in shards.split(name)] for name in shards.splits
    }
    assert sum(map(len, splits.values())) == 240  # nothing was taken for a duplicate, not even a change of case
    assert len(set(splits["eval"])) > 5
    assert not set(splits["train"]) & set(splits["eval"])


def planned(tmp_path, batch_size, seed=0):
    shard([tmp_path / "made.jsonl"], tmp_path / "s", eval_fraction=0, overwrite=True)
    values = {"output_dir": "x", "model": {"path": "m"}, "data": {"train": str(tmp_path / "s")}}
    config = parse_config(values | {"train": {"batch_size": batch_size, "seed": seed}}, "test")
    return open_shards(tmp_path / "s").split("train"), Inputs(config).plan


@pytest.mark.parametrize("seed", [0, 1])
def test_the_batch_plan_keeps_variants_from_their_parent_and_its_other_rows(tmp_path, seed):
    varied(tmp_path, questions(40), variants=2)
    rows, plan = planned(tmp_path, batch_size=8, seed=seed)
    assert len(rows) == 240
    assert plan.meeting(0) == 0
    for step in range(plan.steps_per_epoch):
        _, ids = plan.batch(step)
        records = rows.take(ids.tolist())
        for one, other in itertools.combinations(records, 2):
            assert query_key(one) != query_key(other)
            assert not set(one.positives) & set(other.positives)


def test_where_they_must_meet_the_mask_treats_a_variant_as_its_parent(tmp_path, tiny_bert):
    from trainer.model.build import load_embedder
    from trainer.train.data import TrainData

    varied(tmp_path, questions(4), variants=2)
    rows, plan = planned(tmp_path, batch_size=24)
    _, tokenizer, spec, _ = load_embedder(ModelConfig(path=str(tiny_bert)))
    data = TrainData(DataConfig(train=str(tmp_path / "s")), spec, tokenizer, plan)
    records = list(rows)
    batch = data.make_batch(list(range(24)), records, [0] * 24, 24, seed=0)
    keys = batch.documents
    mask = duplicate_mask(batch.row_keys, batch.row_query, keys.text, keys.document_id, keys.query)
    for row, record in enumerate(records):
        for document, other in enumerate(records):
            related = query_key(record) == query_key(other) or record.positives == other.positives
            assert mask[row, document] == related, (record.query, other.query)
    assert mask[:, :24].sum() == 24 * 6 + 3 * 2 * 9  # a family of six, and a positive of three rows of the next one


def test_bm25_gives_a_variant_no_positive_of_its_parent(tmp_path):
    """Two rows of one question: the answer of the second is no hard negative of the first's variants."""
    parents = [Record("damp wall", ["a damp wall dries slowly"]), Record("damp wall", ["a wall is damp behind tiles"])]
    other = Record("window", ["a damp wall near the window"])
    made = [
        record for record in varied(tmp_path, [*parents, other]) if is_variant(record) or record.query == "damp wall"
    ]
    add_hard_negatives([*made, other], 3, "test")
    for record in made:
        assert set(record.negatives) <= set(other.positives)
    assert any(record.negatives for record in made if is_variant(record))


def test_an_eval_split_counts_all_positives_of_the_family_as_relevant(tmp_path):
    varied(tmp_path, questions(30), changes=Changes(typo_rate=0.5))
    shard([tmp_path / "made.jsonl"], tmp_path / "s", eval_fraction=0.5, split_by="k", on_leakage="drop-train")
    data = load_set(tmp_path / "s")
    relevant = {}
    for record in open_shards(tmp_path / "s").split("eval"):
        relevant.setdefault(query_key(record), set()).update(record.positives)
    texts = dict(zip(data.doc_ids, data.doc_texts))
    for key, query in zip(data.query_ids, data.query_texts):
        (own,) = [found for found in relevant.values() if {texts[doc] for doc in data.qrels[key]} == found]
        assert len(own) == 2, query


def test_letters_in_another_normal_form_are_no_change_by_themselves(tmp_path):
    record = Record(unicodedata.normalize("NFD", "v1 é ü ё"), ["p"])  # nothing here is long enough for a typo
    (_, variant) = varied(tmp_path, [record, Record("heating", ["q"])], changes=Changes(), variants=1)[1:]
    assert variant.metadata["parent_query"] == "heating"


def test_augmenting_again_copies_variants_and_varies_only_the_rest(tmp_path, capsys):
    varied(tmp_path, [Record("water heater", ["p"])], variants=1)
    code, out, err = run(capsys, "augment", tmp_path / "made.jsonl", "--output", tmp_path / "o.jsonl", "--seed", "9")
    assert code == 0
    assert "1 rows are variants already: copied as they are" in err
    assert "2 rows and 1 variants" in out
    assert read_jsonl(tmp_path / "o.jsonl")[0]["query"] == "water heater"


def test_rows_without_enough_variants_are_counted(tmp_path, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", [["v1.13", "x", 0.5], ["heating", "y", 1]])
    code, out, err = run(
        capsys, "augment", path, "--output", tmp_path / "o.jsonl", "--typos", "drop", "--variants", "9"
    )
    assert code == 0
    assert "2 rows got fewer than 9 variants (1 none)" in err
    assert "2 rows and 6 variants (drop 6)" in out


def test_the_command_uses_lists_rates_and_kinds(tmp_path, capsys):
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"anchor": f"receive fridge {n}", "positive": f"p {n}"} for n in range(20)]
    )
    (tmp_path / "m.tsv").write_text("recieve\treceive\n")
    (tmp_path / "s.txt").write_text("fridge, refrigerator\n")
    flags = ["--misspellings", tmp_path / "m.tsv", "--synonyms", tmp_path / "s.txt", "--typos", "swap=2,drop"]
    flags += ["--score-scale", "0.9", "--synonym-rate", "1"]
    code, out, err = run(capsys, "augment", path, "--output", tmp_path / "o.jsonl", *flags)
    assert code == 0
    assert "no row has a score, so --score-scale changed nothing" in err
    assert "20 rows and 20 variants (synonym 20, listed " in out
    variants = [row["query"] for row in read_jsonl(tmp_path / "o.jsonl")][1::2]
    assert all("fridge" not in query and len(query) >= len("receive refrigerator") for query in variants)
    assert any(query.startswith("recieve") for query in variants)
