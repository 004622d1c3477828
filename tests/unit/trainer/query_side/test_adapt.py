"""trainer.adapt_queries on a Chroma collection: what is learned, what is refused, and the folder that comes out."""

import json
import shlex

import numpy as np
import pytest

from data_prep.common.errors import BadInput
from data_prep.reading.retrieval_sets import load_collection
from data_prep.stores.base import Chunk, StoreConfig
from data_prep.stores.open import open_collection, open_store
from tests import forked, tiny
from tests.unit.data_prep.helpers import write_jsonl
from trainer import adapt_queries, evaluate, search
from trainer.config.sections import ModelConfig
from trainer.evaluation.compare import means
from trainer.evaluation.ranking_metrics import score_run
from trainer.inference.metrics import rank_documents
from trainer.inference.store_record import FINGERPRINT, STATE, UNFINISHED
from trainer.inference.text_encoder import TextEncoder
from trainer.query_side import adapt, fit
from trainer.query_side.adapt import divided, related
from trainer.query_side.adapter import QueryAdapter
from trainer.query_side.documents import Stored, share_of
from trainer.query_side.encoder import AdaptedEncoder
from trainer.query_side.lora import training
from trainer.query_side.lora.query_encoder import check_whole

COUNT, D = 320, 32


@pytest.fixture(scope="module")
def encoder(tiny_bert):
    return TextEncoder(ModelConfig(path=str(tiny_bert)), "cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory, encoder):
    """A folder with a collection of the model's own vectors, one whose vectors a fixed turn parts from the queries, and
    pairs that name the chunks of both."""
    folder = tmp_path_factory.mktemp("adapt")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(tiny.WORDS, 12)) for _ in range(COUNT)]
    vectors = encoder.passages(texts)
    turn = np.linalg.qr(rng.standard_normal((D, D)))[0].astype(np.float32)
    turned = vectors @ turn + vectors
    turned /= np.linalg.norm(turned, axis=1, keepdims=True)
    made = {"own": (vectors, {}), "turned": (turned, {FINGERPRINT: encoder.fingerprint}), "long": (3 * vectors, {})}
    made |= {"others": (np.roll(vectors, 1, 0), {}), "half": (vectors, {STATE: UNFINISHED})}
    with open_store(StoreConfig("chroma", "own", path=folder / "chroma"), create=True) as store:
        for name, (stored, about) in made.items():
            rows = [Chunk(f"c{n}", text, {"n": n}, row) for n, (text, row) in enumerate(zip(texts, stored))]
            store.create(name, D, about, cosine=name != "long").upsert(rows)
    rows = [
        {"chunk_id": f"c{n}", "question": text[: len(text) // 2 + 8], "answer": text} for n, text in enumerate(texts)
    ]
    write_jsonl(folder / "pairs.jsonl", rows)
    return folder


def command(world, model, collection: str, output: str, *more: str) -> list[str]:
    store = ["--path", world / "chroma", "--collection", collection, "--pairs", world / "pairs.jsonl"]
    return [str(part) for part in ["--model", model, *store, "--output", world / output, "--device", "cpu", *more]]


@pytest.fixture(scope="module")
def adapted(world, tiny_bert):
    """The folder of an adapter for the turned collection."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit, "RATE", 3e-2)
        assert adapt_queries.main(command(world, tiny_bert, "turned", "adapted")) == 0
    return world / "adapted"


def test_a_gain_on_queries_of_other_documents_is_written_with_its_interval(adapted, encoder):
    adapter = QueryAdapter.load(adapted)
    facts = adapter.facts
    row = facts["metrics"]["nDCG@10"]
    assert facts["verdict"] == "better" and not adapter.is_identity
    assert row["tuned"] > row["base"] + 0.05 and row["interval_95"][0] > 0
    assert facts["queries"] == {"train": 160, "choose": 80, "report": 80} and not facts["same_queries"]
    assert facts["model_sha256"] == encoder.fingerprint and facts["chunks"] == COUNT
    assert not list(adapted.parent.glob(".adapted*")), "the file of vectors is gone"


def test_sentence_transformers_gives_the_adapters_queries_and_the_models_documents(adapted, encoder):
    from sentence_transformers import SentenceTransformer

    texts = [" ".join(tiny.WORDS[n : n + 9]) for n in range(30)]
    model = SentenceTransformer(str(adapted), device="cpu")
    sides = {
        "query": (model.encode_query(texts), QueryAdapter.load(adapted)(encoder.queries(texts))),
        "document": (model.encode_document(texts), encoder.passages(texts)),
        "neither": (model.encode(texts), encoder.passages(texts)),
    }
    for side, (theirs, ours) in sides.items():
        assert (theirs * ours).sum(axis=1).min() > 0.99999, side
        np.testing.assert_allclose(np.linalg.norm(theirs, axis=1), 1, atol=1e-5)
    assert (sides["query"][1] * encoder.queries(texts)).sum(axis=1).min() < 0.99


def test_where_nothing_can_be_learned_the_identity_is_written_and_said(world, tiny_bert, encoder, capsys, monkeypatch):
    monkeypatch.setattr(fit, "measured", lambda *_: 0.5)
    assert adapt_queries.main(command(world, tiny_bert, "own", "same")) == 0
    assert "leave it as it is" in capsys.readouterr().out
    adapter = QueryAdapter.load(world / "same")
    assert adapter.is_identity and adapter.facts["metrics"]["nDCG@10"]["difference"] == 0
    asked = encoder.queries(["w1 w2"])
    np.testing.assert_allclose(adapter(asked), asked, atol=1e-6)


def test_a_second_process_for_an_output_ends_and_the_first_is_undisturbed(world, tiny_bert, capsys, monkeypatch):
    second, argv = [], command(world, tiny_bert, "own", "both", "--rank", "4")

    def meanwhile(ids, qrels):  # the vectors are on the disk
        if not second:
            second.append(None)
            second[0] = adapt_queries.main(argv), capsys.readouterr().err
        return divided(ids, qrels)

    monkeypatch.setattr(adapt, "divided", meanwhile)
    assert adapt_queries.main(argv) == 0
    ((code, said),) = second
    assert code == 1 and said.endswith("both: another process writes there; wait for its end, or name another output\n")
    assert QueryAdapter.load(world / "both").facts["chunks"] == COUNT
    assert not list(world.glob(".both*")), "the file of vectors is gone"


def test_an_output_that_another_process_has_finished_meanwhile_is_kept(world, tiny_bert, capsys, monkeypatch):
    def meanwhile(*configs):
        (world / "finished").mkdir()
        (world / "finished" / "precious").write_text("whole")
        return TextEncoder(*configs)

    monkeypatch.setattr(adapt_queries, "TextEncoder", meanwhile)
    assert adapt_queries.main(command(world, tiny_bert, "own", "finished")) == 2
    assert "finished: exists and is not an empty folder; name a new one" in capsys.readouterr().err
    assert [path.name for path in world.glob("*finished*")] == ["finished"]
    assert (world / "finished" / "precious").read_text() == "whole"


def test_the_other_forms_of_a_map_run(world, tiny_bert):
    for name, more in {"mlp": ["--map", "mlp"], "low": ["--rank", "4"]}.items():
        assert adapt_queries.main(command(world, tiny_bert, "own", name, *more)) == 0
        assert QueryAdapter.load(world / name).facts["verdict"] in ("better", "leave it as it is")


@pytest.fixture(scope="module")
def by_lora(world, tiny_bert):
    """The folder of an encoder of queries for the turned collection."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "OPTIM", training.OPTIM.model_copy(update={"lr": 2e-2}))
        assert adapt_queries.main(command(world, tiny_bert, "turned", "lora", "--map", "lora", "--rank", "8")) == 0
    return world / "lora"


def test_lora_gains_on_queries_of_other_documents(by_lora):
    facts = QueryAdapter.read(by_lora).facts
    row = facts["metrics"]["nDCG@10"]
    assert facts["verdict"] == "better" and row["interval_95"][0] > 0
    assert facts["rank"] == 8 and facts["epochs"] > 0 and len(facts["path"]) == training.EPOCHS + 1
    with pytest.raises(BadInput, match="holds an encoder of queries"):
        QueryAdapter.load(by_lora)


def test_every_reader_of_a_lora_folder_has_the_same_queries_and_the_models_documents(by_lora, encoder):
    from sentence_transformers import SentenceTransformer

    texts = [" ".join(tiny.WORDS[n : n + 9]) for n in range(30)]
    model, adapted = SentenceTransformer(str(by_lora), device="cpu"), AdaptedEncoder(encoder.config, by_lora)
    alone = SentenceTransformer(str(by_lora / "query"), device="cpu").encode(texts)
    for theirs, ours in (
        (model.encode_query(texts), adapted.queries(texts)),
        (alone, adapted.queries(texts)),
        (model.encode_document(texts), encoder.passages(texts)),
        (model.encode(texts), encoder.passages(texts)),
    ):
        assert (theirs * ours).sum(axis=1).min() > 0.99999
    assert (adapted.queries(texts) * encoder.queries(texts)).sum(axis=1).min() < 0.99


def test_lora_without_a_gain_leaves_the_model_as_it_is(world, tiny_bert, monkeypatch):
    monkeypatch.setattr(training, "measured", lambda *_: 0.5)
    assert adapt_queries.main(command(world, tiny_bert, "own", "left", "--map", "lora")) == 0
    adapter = QueryAdapter.load(world / "left")
    assert adapter.is_identity and adapter.facts["epochs"] == 0 and adapter.facts["verdict"] == "leave it as it is"


def test_lora_refuses_an_adapter_and_vectors_that_are_cut(tiny_bert, tmp_path):
    adapter = tiny.adapter(tmp_path / "adapter", tiny_bert)
    with pytest.raises(BadInput, match="merge it first"):
        check_whole(TextEncoder(ModelConfig(path=str(adapter), tokenizer=str(tiny_bert), pooling="mean"), "cpu"))
    with pytest.raises(BadInput, match="holds the first 8 numbers"):
        check_whole(TextEncoder(ModelConfig(path=str(tiny_bert)), "cpu", dim=8))


def test_two_ranks_choose_what_one_does(world, tiny_bert):
    done = forked.run_ranks(2, "-m", "trainer.adapt_queries", *command(world, tiny_bert, "turned", "ranks"))
    assert done.returncode == 0, done.both
    [following] = [line for line in done.stderr.splitlines() if line.startswith("Next: ")]  # of rank 0 alone
    assert search.main(shlex.split(following)[4:]) == 0 and str(world / "ranks") in following
    alone = forked.run("-m", "trainer.adapt_queries", *command(world, tiny_bert, "turned", "alone"))
    assert alone.returncode == 0, alone.both
    one, two = (QueryAdapter.load(world / name) for name in ("alone", "ranks"))
    assert [row["penalty"] for row in one.facts["path"]] == [row["penalty"] for row in two.facts["path"]]
    assert one.facts["metrics"].keys() == two.facts["metrics"].keys()
    for mine, its in zip(one.layers, two.layers, strict=True):
        np.testing.assert_allclose(mine.weight, its.weight, atol=1e-3)


def searched(world, model, collection: str, adapter, *more: str) -> list[str]:
    store = ["--path", world / "chroma", "--collection", collection, "--model", model, "--device", "cpu"]
    return [str(part) for part in ["w1 w2 w3", "w7 w8", *store, "--query-adapter", adapter, *more]]


def test_search_maps_the_queries_and_not_the_documents(world, tiny_bert, encoder, adapted, monkeypatch):
    shown = {}
    monkeypatch.setattr(search, "show", lambda query, sides, head: shown.setdefault(query, sides))
    assert search.main(searched(world, tiny_bert, "turned", adapted, "--compare", str(tiny_bert))) == 0
    with open_collection(StoreConfig("chroma", "turned", path=world / "chroma")) as collection:
        stored = list(collection.chunks(embeddings=True))
    documents, plain = np.array([chunk.embedding for chunk in stored]), encoder.queries(["w1 w2 w3"])
    for side, vectors in {"tuned": QueryAdapter.load(adapted)(plain), "base": plain}.items():
        hits = next(hits for name, hits in shown["w1 w2 w3"].items() if name.startswith(side))
        scores = documents @ vectors[0]
        assert [hit.id for hit in hits] == [stored[n].id for n in np.argsort(-scores)[:3]]
        np.testing.assert_allclose([hit.similarity for hit in hits], np.sort(scores)[::-1][:3], atol=1e-4)


def test_evaluate_maps_the_queries_and_not_the_documents(world, tiny_bert, encoder, adapted, tmp_path, capsys):
    argv = ["--path", world / "chroma", "--collection", "own", "--pairs", world / "pairs.jsonl", "--device", "cpu"]
    argv += ["--model", tiny_bert, "--baseline", tiny_bert, "--query-adapter", adapted, "--json", tmp_path / "r.json"]
    assert evaluate.main([str(part) for part in argv]) == 0
    row = json.loads((tmp_path / "r.json").read_text())["comparison"]["nDCG@10"]
    data = load_collection(StoreConfig("chroma", "own", path=world / "chroma"), world / "pairs.jsonl")
    documents, queries = encoder.passages(data.doc_texts), encoder.queries(data.query_texts)
    for side, vectors in {"base": queries, "tuned": QueryAdapter.load(adapted)(queries)}.items():
        assert abs(row[side] - means(score_run(data.qrels, rank_documents(vectors, documents, data)))["nDCG@10"]) < 1e-4
    shown = capsys.readouterr()
    assert f"queries of tuned pass {adapted}" in shown.out
    following = shlex.split(shown.err.splitlines()[-1])
    assert following[:4] == ["Next:", "python", "-m", "trainer.search"] and search.main(following[4:]) == 0
    assert f"{adapted}" in following and "tuned" in capsys.readouterr().out
    assert evaluate.main([*map(str, argv), "--dims", "8"]) == 2
    assert "--dims: an adapter maps whole vectors" in capsys.readouterr().err


def test_search_refuses_an_adapter_of_other_documents_or_queries(world, tiny_bert, adapted, tmp_path, capsys):
    other = tiny.model(tmp_path / "other", family="xlm-r")
    cases = {
        "holds no vectors of": searched(world, tiny_bert, "others", adapted),
        "whose files are not those of": searched(world, other, "turned", adapted),
        "were read with '' before them": searched(world, tiny_bert, "turned", adapted, "--query-prompt", "ask: "),
        "is no query adapter": searched(world, tiny_bert, "turned", tiny_bert),
        "trainer.adapt_queries": searched(world, adapted, "turned", adapted),
    }
    for said, argv in cases.items():
        assert search.main(argv) == 2
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("collection", "said"),
    [
        ("others", "holds no vectors of"),
        ("long", "have another length than 1 (3 to 3)"),
        ("half", "is unfinished"),
        ("missing", "not in"),
    ],
)
def test_vectors_that_are_not_the_models_are_refused(world, tiny_bert, collection, said, capsys):
    assert adapt_queries.main(command(world, tiny_bert, collection, "refused")) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not (world / "refused").exists() and not list(world.glob(".refused*"))


def test_all_problems_of_the_flags_are_listed_at_once(world, tiny_bert, adapted, capsys):
    argv = command(world, tiny_bert, "own", "adapted", "--map", "mlp", "--rank", "0")
    argv[argv.index("--pairs") + 1] = "nowhere.jsonl"
    assert adapt_queries.main(argv) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in ("4 problems", "--output", "no such file", "belongs to", "must be 1 or more"))


def test_copies_of_a_positives_text_are_no_negatives():
    stored = Stored({f"c{n}": n for n in range(5)}, np.array([7, 8, 7, 9, 8]), D)
    found = related(["a", "b"], {"a": {"c0": 1, "gone": 1}, "b": {"c3": 1, "c4": 1}}, stored)
    rows = list(zip(found.queries.tolist(), found.documents.tolist(), found.positive.tolist()))
    assert rows == [(0, 0, True), (0, 2, False), (1, 1, False), (1, 3, True), (1, 4, True)]


def test_queries_of_a_document_train_or_report_never_both():
    ids = [f"q{n}" for n in range(2000)]
    qrels = {query: {f"d{n // 4}": 1} for n, query in enumerate(ids)}
    training, halves = divided(ids, qrels)
    sides = [training, halves.choosing, halves.reporting]
    documents = [{next(iter(qrels[query])) for query in side} for side in sides]
    assert sorted(query for side in sides for query in side) == sorted(ids)
    assert not (documents[0] & documents[1] or documents[0] & documents[2] or documents[1] & documents[2])
    assert len(training) == 1600 and len(halves.choosing) == len(halves.reporting) == 200
    assert 150 <= len(divided(ids[:300], qrels)[0]) < 154, "no more than half are held out"
    with pytest.raises(BadInput, match="one query alone"):
        divided(ids[:1], qrels)


def test_every_vector_is_in_one_share(tmp_path):
    vectors = np.arange(35, dtype=np.float32).reshape(7, 5)
    (tmp_path / "vectors").write_bytes(vectors.tobytes())
    for size in (1, 2, 3, 9):
        shares = [share_of(tmp_path / "vectors", 7, 5, rank, size) for rank in range(size)]
        assert np.array_equal(np.concatenate([share.vectors.numpy() for share in shares]), vectors)
        assert [share.first for share in shares] == [7 * rank // size for rank in range(size)]
