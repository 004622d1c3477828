"""Mining with real models: tiny ones made on the spot, and MiniLM; stores with vectors of their own."""

import json
import shutil

import numpy as np
import pytest

from data_prep.common.errors import BadInput
from data_prep.stores.base import Chunk, StoreConfig
from data_prep.stores.open import open_store
from tests import tiny
from tests.unit.data_prep.helpers import read_jsonl, run, write_jsonl


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    return tiny.cross_encoder(tmp_path_factory.mktemp("models") / "cross")


@pytest.fixture(scope="module")
def prompted(tmp_path_factory):
    """A tiny model with prompts, a default one that is neither, and CLS pooling."""
    folder = tiny.model(tmp_path_factory.mktemp("models") / "prompted", pooling="cls")
    prompts = {"query": "w1 w2 ", "document": "w3 ", "other": "w4 w5 "}
    settings = {"prompts": prompts, "default_prompt_name": "other", "similarity_fn_name": "cosine"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", tiny.rows(30, negatives=False))


def test_the_encoder_embeds_as_the_trainer_does(prompted):
    """Two implementations of one folder: prompts, pooling, length and normalisation are read alike."""
    from data_prep.mining.models import SentenceEncoder
    from trainer.config.sections import ModelConfig
    from trainer.inference.text_encoder import TextEncoder

    ours = TextEncoder(ModelConfig(path=str(prompted)), device="cpu")
    found = SentenceEncoder(str(prompted), device="cpu")
    texts = ["w9 w8", "w7", " ".join(f"w{i}" for i in range(50))]
    for own, theirs in ((ours.queries, found.queries), (ours.passages, found.passages)):
        vectors, cut = theirs(texts)
        np.testing.assert_allclose(vectors, own(texts), atol=2e-6)
        assert cut.tolist() == [False, False, True]
    assert (found.max_len, found.size, found.unit) == (32, 32, True)


def test_a_digest_names_what_changes_an_embedding(prompted, tiny_bert):
    from data_prep.mining.models import SentenceEncoder

    made = [
        SentenceEncoder(str(prompted)),
        SentenceEncoder(str(prompted), query_prompt=""),
        SentenceEncoder(str(prompted), passage_prompt="w9 "),
        SentenceEncoder(str(prompted), max_len=16),
        SentenceEncoder(str(tiny_bert)),
    ]
    assert len({encoder.digest for encoder in made}) == len(made)
    assert SentenceEncoder(str(prompted)).digest == made[0].digest


def test_models_that_would_mislead_are_refused(tmp_path, tiny_bert, cross_encoder):
    from data_prep.mining.models import CrossEncoderScorer, SentenceEncoder

    def changed(folder, name, **settings):
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | settings))
        return copy

    code = {"auto_map": {"AutoModel": "modeling.Own"}}
    bare = tiny.model(tmp_path / "bare", pooling=None)
    euclidean = changed(tiny_bert, "euclidean")
    (euclidean / "config_sentence_transformers.json").write_text('{"similarity_fn_name": "euclidean"}')
    refused = [
        (SentenceEncoder, bare, "does not say how its tokens are pooled"),
        (SentenceEncoder, changed(tiny_bert, "code", **code), "brings its own code"),
        (SentenceEncoder, euclidean, "its similarity is euclidean"),
        (CrossEncoderScorer, changed(cross_encoder, "cross-code", **code), "brings its own code"),
        (CrossEncoderScorer, tiny_bert, "is no cross-encoder (its architecture: BertModel)"),
        (CrossEncoderScorer, tiny.cross_encoder(tmp_path / "three", labels=3), "gives 3 scores for a pair"),
        (CrossEncoderScorer, tmp_path, "is no cross-encoder (its architecture: none)"),
        (CrossEncoderScorer, "no/such/model", "is no folder"),
    ]
    for kind, folder, expected in refused:
        with pytest.raises(BadInput) as caught:
            kind(str(folder))
        assert expected in str(caught.value)
        assert "brings" not in expected or "give --trust-remote-code only if" in str(caught.value)
    with pytest.raises(BadInput, match="--max-len 99"):
        SentenceEncoder(str(tiny_bert), max_len=99)


def test_a_model_of_its_own_code_is_mined_with_once_it_is_trusted(tmp_path, capsys, rows):
    from data_prep.mining.models import SentenceEncoder
    from trainer.config.sections import ModelConfig
    from trainer.inference.text_encoder import TextEncoder

    own = tiny.own_code(tmp_path / "own")
    asked = ("mine", rows, "--output", tmp_path / "out.jsonl", "--k", "1", "--model", own)
    code, _, err = run(capsys, *asked)
    assert code == 2 and "give --trust-remote-code only if you have read it" in err
    code, _, err = run(capsys, *asked, "--trust-remote-code")
    assert code == 0, err
    code, _, err = run(capsys, *asked[:6], "--trust-remote-code")
    assert code == 2 and "--trust-remote-code: needs --model or --rescore" in err

    made = SentenceEncoder(str(own), trust_remote_code=True)
    ours = TextEncoder(ModelConfig(path=str(own), trust_remote_code=True), "cpu")
    assert np.abs(made.queries(["w1 w2", "w3"])[0] - ours.queries(["w1 w2", "w3"])).max() < 1e-5
    other = shutil.copytree(own, tmp_path / "other")
    with (other / "modeling_own.py").open("a") as code:
        code.write("# changed\n")
    assert SentenceEncoder(str(other), trust_remote_code=True).digest != made.digest, "of a cache of vectors"


def test_mining_by_a_model_is_brute_force_over_its_embeddings(tmp_path, capsys, rows, tiny_bert):
    from data_prep.mining.models import SentenceEncoder

    out = tmp_path / "o.jsonl"
    code, _, err = run(capsys, "mine", rows, "--output", out, "--model", tiny_bert, "--k", "3", "--margin", "0.001")
    assert code == 0
    records = read_jsonl(out)
    encoder = SentenceEncoder(str(tiny_bert))
    texts = [record["positives"][0] for record in records]
    scores = encoder.queries([record["query"] for record in records])[0] @ encoder.passages(texts)[0].T
    dropped = 0
    for i, record in enumerate(records):
        order = [j for j in np.argsort(-scores[i]) if j != i]
        kept = [j for j in order if scores[i, j] <= scores[i, i] - 0.001]
        assert record["negatives"] == [texts[j] for j in kept[:3]]
        dropped += len(order) - len(kept) if len(kept) < 3 else order.index(kept[2]) - 2
    assert f"{dropped:,} above the margin" in err
    assert not list(tmp_path.glob(".*"))


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


# --- stores ---


@pytest.mark.parametrize("kind", ["chroma", "qdrant"])
def test_the_stores_own_vectors_serve_when_they_are_the_models(tmp_path, capsys, tiny_bert, kind):
    from data_prep.mining.models import SentenceEncoder

    made = tiny.rows(40, negatives=False)
    texts = [row["positives"][0] for row in made]
    encoder = SentenceEncoder(str(tiny_bert))
    vectors = encoder.passages(texts)[0]
    other = np.random.default_rng(0).standard_normal(vectors.shape).astype(np.float32)
    for name, stored in (("good", vectors), ("foreign", other)):
        with open_store(StoreConfig(kind, name, path=tmp_path / kind), create=True) as store:
            chunks = [Chunk(str(i), text, {"page": i % 9}, stored[i]) for i, text in enumerate(texts)]
            store.create(name, 32, {}).upsert(chunks)
    rows = [{"chunk_id": str(i), "question": r["query"], "answer": r["positives"][0]} for i, r in enumerate(made[:15])]
    path = write_jsonl(tmp_path / "rows.jsonl", [row | {"page": i % 9} for i, row in enumerate(rows)])
    at = ("--store", kind, "--path", tmp_path / kind, "--model", tiny_bert, "--same-document", "page", "--k", "3")
    plain, quick = tmp_path / "plain.jsonl", tmp_path / "quick.jsonl"
    assert run(capsys, "mine", path, "--output", plain, "--collection", "good", *at)[0] == 0
    code, _, err = run(capsys, "mine", path, "--output", quick, "--collection", "good", "--stored-vectors", *at)
    assert code == 0, err
    assert "embedding passages" not in err
    assert read_jsonl(plain) == read_jsonl(quick)
    pages = {text: i % 9 for i, text in enumerate(texts)}
    for i, record in enumerate(read_jsonl(quick)):
        assert len(record["negatives"]) == 3
        assert all(pages[text] != i % 9 for text in record["negatives"])
    code, _, err = run(capsys, "mine", path, "--output", quick, "--collection", "foreign", "--stored-vectors", *at)
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
        assert (
            run(capsys, "mine", rows, "--corpus", corpus, "--output", out, "--model", minilm, "--k", "3", *flags)[0]
            == 0
        )
        mined[name] = read_jsonl(out)[0]["negatives"]
    assert mined == {"all": [paraphrase, *others], "margin": others}
