"""Candidates scored anew by real cross-encoders, tiny ones made on the spot."""

import json
import shutil

import pytest

from data_prep.common.errors import BadInput
from tests import tiny
from tests.unit.data_prep.helpers import read_jsonl, run, write_jsonl


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    return tiny.cross_encoder(tmp_path_factory.mktemp("models") / "cross")


def test_models_that_would_mislead_are_refused(tmp_path, tiny_bert, cross_encoder):
    from data_prep.mining.cross_encoder import CrossEncoderScorer

    def changed(folder, name, **settings):
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | settings))
        return copy

    code = {"auto_map": {"AutoModel": "modeling.Own"}}
    refused = [
        (changed(cross_encoder, "cross-code", **code), "brings its own code"),
        (tiny_bert, "is no cross-encoder (its architecture: BertModel)"),
        (tiny.cross_encoder(tmp_path / "three", labels=3), "gives 3 scores for a pair"),
        (tmp_path, "is no cross-encoder (its architecture: none)"),
        ("no/such/model", "is no folder"),
    ]
    for folder, expected in refused:
        with pytest.raises(BadInput) as caught:
            CrossEncoderScorer(str(folder))
        assert expected in str(caught.value)
        assert "brings" not in expected or "give --trust-remote-code only if" in str(caught.value)


def test_rescoring_fills_teacher_scores_with_the_cross_encoders_own(tmp_path, capsys, cross_encoder):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    given = tiny.rows(12, negatives=False)
    given[0]["negatives"] = ["w1 w2 w3"]
    given[1] |= {"negatives": ["w4"], "teacher_scores": [1.0, 0.0]}
    path, out = write_jsonl(tmp_path / "a.jsonl", given), tmp_path / "o.jsonl"
    code, _, err = run(capsys, "mine", path, "--output", out, "--rescore", cross_encoder, "--k", "2", "--range", "0:6")
    assert code == 0
    assert "1 rows had teacher_scores; those of the cross-encoder replace them" in err
    model = AutoModelForSequenceClassification.from_pretrained(cross_encoder).eval()
    tokenizer = AutoTokenizer.from_pretrained(cross_encoder)

    def score(query: str, text: str) -> float:
        with torch.no_grad():
            read = tokenizer(query, text, return_tensors="pt", truncation=True, max_length=64)
            return model(**read).logits.sigmoid().item()

    for record, before in zip(read_jsonl(out), given):
        documents = record["positives"] + record["negatives"]
        assert record["negatives"][: len(before["negatives"])] == before["negatives"]
        assert record["teacher_scores"] == pytest.approx([score(record["query"], text) for text in documents], abs=1e-6)
        mined = record["teacher_scores"][1 + len(before["negatives"]) :]
        assert mined == sorted(mined, reverse=True)
    assert run(capsys, "shard", out, "--output", tmp_path / "shards", "--eval-fraction", "0")[0] == 0


def test_a_cross_encoder_judges_the_margin(tmp_path, capsys, cross_encoder):
    path, out = write_jsonl(tmp_path / "a.jsonl", tiny.rows(20, negatives=False)), tmp_path / "o.jsonl"
    flags = (
        "--rescore",
        cross_encoder,
        "--k",
        "3",
        "--range",
        "0:8",
        "--margin",
        "0.01",
        "--cache",
        tmp_path / "cache",
    )
    assert run(capsys, "mine", path, "--output", out, *flags)[0] == 0
    records = read_jsonl(out)
    assert any(len(record["negatives"]) < 3 for record in records)
    assert any(record["negatives"] for record in records)
    for record in records:
        positive, *mined = record["teacher_scores"]
        assert all(score <= positive - 0.01 + 1e-9 for score in mined)
