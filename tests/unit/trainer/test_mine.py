"""Hard negatives by a model: tiny ones made on the spot, and MiniLM; stores with vectors of their own."""

import numpy as np
import pytest

from data_prep.stores.base import Chunk, StoreConfig
from data_prep.stores.open import open_store
from tests import tiny
from tests.unit.data_prep.helpers import read_jsonl, write_jsonl
from trainer.config.sections import ModelConfig
from trainer.inference.text_encoder import TextEncoder
from trainer.mine import main


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", tiny.rows(30, negatives=False))


def mine(capsys, *arguments) -> tuple[int, str]:
    """Returns exit code and stderr."""
    capsys.readouterr()
    code = main([*map(str, arguments), "--device", "cpu"])
    return code, capsys.readouterr().err


def test_mining_is_brute_force_over_the_models_embeddings(tmp_path, capsys, rows, tiny_bert):
    out = tmp_path / "o.jsonl"
    code, err = mine(capsys, rows, "--output", out, "--model", tiny_bert, "--k", "3", "--margin", "0.001")
    assert code == 0, err
    records = read_jsonl(out)
    encoder = TextEncoder(ModelConfig(path=str(tiny_bert)), "cpu")
    texts = [record["positives"][0] for record in records]
    scores = encoder.queries([record["query"] for record in records]) @ encoder.passages(texts).T
    dropped = 0
    for i, record in enumerate(records):
        order = [j for j in np.argsort(-scores[i]) if j != i]
        kept = [j for j in order if scores[i, j] <= scores[i, i] - 0.001]
        assert record["negatives"] == [texts[j] for j in kept[:3]]
        dropped += len(order) - len(kept) if len(kept) < 3 else order.index(kept[2]) - 2
    assert f"{dropped:,} above the margin" in err
    assert not list(tmp_path.glob(".*"))


def test_a_model_of_its_own_code_is_mined_with_once_it_is_trusted(tmp_path, capsys, rows):
    own = tiny.own_code(tmp_path / "own")
    asked = (rows, "--output", tmp_path / "out.jsonl", "--k", "1", "--model", own)
    code, err = mine(capsys, *asked)
    assert code == 2 and "trust_remote_code" in err
    code, err = mine(capsys, *asked, "--trust-remote-code")
    assert code == 0, err


def test_models_that_cannot_be_mined_with_are_refused(tmp_path, capsys, rows, tiny_bert):
    refused = {
        (): "--model: is needed here",
        ("--model", "nowhere/at/all"): "nowhere/at/all",
        ("--model", tiny.model(tmp_path / "bare", pooling=None)): "does not say how its tokens are pooled",
        ("--model", tiny_bert, "--max-len", "99"): "99",
    }
    for flags, expected in refused.items():
        code, err = mine(capsys, rows, "--output", tmp_path / "o.jsonl", *flags)
        assert code == 2 and expected in err
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize("kind", ["chroma", "qdrant"])
def test_the_stores_own_vectors_serve_when_they_are_the_models(tmp_path, capsys, tiny_bert, kind):
    made = tiny.rows(40, negatives=False)
    texts = [row["positives"][0] for row in made]
    vectors = TextEncoder(ModelConfig(path=str(tiny_bert)), "cpu").passages(texts)
    other = np.random.default_rng(0).standard_normal(vectors.shape).astype(np.float32)
    for name, stored in (("good", vectors), ("foreign", other)):
        with open_store(StoreConfig(kind, name, path=tmp_path / kind), create=True) as store:
            chunks = [Chunk(str(i), text, {"page": i % 9}, stored[i]) for i, text in enumerate(texts)]
            store.create(name, 32, {}).upsert(chunks)
    rows = [{"chunk_id": str(i), "question": r["query"], "answer": r["positives"][0]} for i, r in enumerate(made[:15])]
    path = write_jsonl(tmp_path / "rows.jsonl", [row | {"page": i % 9} for i, row in enumerate(rows)])
    at = ("--store", kind, "--path", tmp_path / kind, "--model", tiny_bert, "--same-document", "page", "--k", "3")
    plain, quick = tmp_path / "plain.jsonl", tmp_path / "quick.jsonl"
    assert mine(capsys, path, "--output", plain, "--collection", "good", *at)[0] == 0
    code, err = mine(capsys, path, "--output", quick, "--collection", "good", "--stored-vectors", *at)
    assert code == 0, err
    assert "embedding passages" not in err
    assert read_jsonl(plain) == read_jsonl(quick)
    pages = {text: i % 9 for i, text in enumerate(texts)}
    for i, record in enumerate(read_jsonl(quick)):
        assert len(record["negatives"]) == 3
        assert all(pages[text] != i % 9 for text in record["negatives"])
    code, err = mine(capsys, path, "--output", quick, "--collection", "foreign", "--stored-vectors", *at)
    assert code == 2 and "the store's are not what --model gives" in err


def test_a_paraphrase_of_the_answer_is_above_the_margin(tmp_path, capsys, minilm):
    """MiniLM sees what words do not show: the second answer is left out, texts on the same subject stay."""
    answer = "To reset your password, open the settings page and choose a new password."
    paraphrase = "Forgot your password? Reset it on the settings page, where you choose a new one."
    others = ["A password needs at least twelve characters.", "Accounts are deleted after a year without a login."]
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"text": text} for text in (*others, paraphrase)])
    rows = write_jsonl(tmp_path / "a.jsonl", [{"question": "How do I reset my password?", "answer": answer}])
    mined = {}
    for name, flags in (("all", ()), ("margin", ("--relative-margin", "0.15"))):
        out = tmp_path / f"{name}.jsonl"
        asked = (rows, "--corpus", corpus, "--output", out, "--model", minilm, "--k", "3", *flags)
        assert mine(capsys, *asked)[0] == 0
        mined[name] = read_jsonl(out)[0]["negatives"]
    assert mined == {"all": [paraphrase, *others], "margin": others}
