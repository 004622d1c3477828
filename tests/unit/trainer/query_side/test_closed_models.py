"""Query adapters of a model behind an endpoint: what is paid, learned, refused and written."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from data_prep.model_server.embeddings import EmbeddingConfig
from data_prep.reading.retrieval_sets import load_collection
from data_prep.stores.base import Chunk, StoreConfig
from data_prep.stores.open import open_store
from tests import forked
from tests.embedding_server import D, EmbeddingServer, vector_of
from tests.language_model import KEY, MODEL, serving
from tests.unit.data_prep.helpers import write_jsonl
from trainer import adapt_queries, evaluate, search
from trainer.evaluation.compare import means
from trainer.evaluation.ranking_metrics import score_run
from trainer.inference.metrics import rank_documents
from trainer.inference.searching import mismatch
from trainer.inference.store_record import FINGERPRINT
from trainer.query_side import fit
from trainer.query_side.adapt import Recorded
from trainer.query_side.adapter import ADAPTER, WEIGHTS, QueryAdapter
from trainer.query_side.endpoint_encoder import WORD, EndpointEncoder
from trainer.query_side.exports.onnx_graph import FILE, computed
from trainer.run_dir.layout import MARKER

COUNT = 320


def chunk_text(number: int, place: str = "") -> str:
    return f"valve{number} {place} opens at bar{number % 17} and is checked by team{number % 23}"


def question(number: int) -> str:
    return f"who checks valve{number}, and when does it open?"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with collections of Chroma, pairs that name their chunks, and the endpoint whose vectors they hold."""
    folder = tmp_path_factory.mktemp("closed")
    texts = [chunk_text(number) for number in range(COUNT)]
    own = np.array([vector_of(text) for text in texts])
    half = own[:, : D // 2] / np.linalg.norm(own[:, : D // 2], axis=1, keepdims=True)
    wide = np.concatenate([own, own], axis=1) / np.sqrt(2)
    elsewhere = [chunk_text(number, "elsewhere") for number in range(COUNT)]
    made = {
        "docs": (texts, own, {}),
        "first-half": (texts, half, {}),
        "other-length": (texts, 3 * own, {}),
        "other-model": (texts, np.roll(own, 1, axis=0), {}),
        "other-record": (texts, own, {FINGERPRINT: "0" * 64}),
        "other-size": (texts, wide, {}),
        "other-documents": (elsewhere, np.array([vector_of(text) for text in elsewhere]), {}),
    }
    with open_store(StoreConfig("chroma", "docs", path=folder / "chroma"), create=True) as store:
        for name, (rows, vectors, about) in made.items():
            chunks = [Chunk(f"c{n}", text, {"n": n}, row) for n, (text, row) in enumerate(zip(rows, vectors))]
            store.create(name, vectors.shape[1], about, cosine=name != "other-length").upsert(chunks)
    rows = [{"chunk_id": f"c{n}", "question": question(n), "answer": "a"} for n in range(COUNT)]
    write_jsonl(folder / "pairs.jsonl", rows)
    server = EmbeddingServer()
    with serving(server) as url, pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("OPENAI_API_KEY", KEY)
        patched.setenv("EMBEDFLEET_CACHE", str(folder / "cache"))
        patched.delenv("OPENAI_BASE_URL", raising=False)
        patched.setattr(fit, "RATE", 3e-2)
        yield SimpleNamespace(folder=folder, server=server, url=url)


def at(world, collection: str, *more: str) -> list[str]:
    store = ["--path", world.folder / "chroma", "--collection", collection, "--endpoint", world.url]
    return [str(part) for part in [*store, "--endpoint-model", MODEL, "--device", "cpu", *more]]


def command(world, collection: str, output: str, *more: str) -> list[str]:
    files = "--pairs", str(world.folder / "pairs.jsonl"), "--output", str(world.folder / output)
    return at(world, collection, *files, *more)


@pytest.fixture(scope="module")
def adapted(world):
    assert adapt_queries.main(command(world, "docs", "adapted", "--onnx")) == 0
    return world.folder / "adapted"


def test_each_text_is_paid_once_and_the_folder_holds_no_model_and_no_key(world, adapted):
    paid = Counter(world.server.answered())
    questions, chunks = ({make(number) for number in range(COUNT)} for make in (question, chunk_text))
    assert set(paid.values()) == {1} and questions < paid.keys()
    assert len(paid.keys() & chunks) == 8 and paid.keys() - chunks - questions == {WORD}
    adapter = QueryAdapter.load(adapted)
    assert adapter.facts["endpoint_model"] == MODEL and adapter.facts["verdict"] == "better"
    assert adapter.facts["metrics"]["nDCG@10"]["difference"] > 0.05
    assert {file.name for file in adapted.iterdir()} == {ADAPTER, FILE, WEIGHTS, MARKER}
    files = [file for file in world.folder.rglob("*") if file.is_file()]
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


def test_the_graph_computes_what_numpy_does(adapted):
    adapter, given = QueryAdapter.load(adapted), np.random.default_rng(1).standard_normal((50, D)).astype(np.float32)
    given[0] = 0
    np.testing.assert_allclose(computed(adapted / FILE, given), adapter(given), atol=1e-6)


def test_langchain_embeds_queries_through_the_adapter(adapted):
    embeddings = pytest.importorskip("langchain_core.embeddings", reason="needs langchain-core, of the extra dev")
    from trainer.query_side.exports.langchain import AdaptedEmbeddings

    class Endpoint(embeddings.Embeddings):
        def embed_documents(self, texts):
            return [vector_of(text).tolist() for text in texts]

        def embed_query(self, text):
            return vector_of(text).tolist()

    made = AdaptedEmbeddings(Endpoint(), adapted)
    assert made.embed_documents(["a", "b"]) == Endpoint().embed_documents(["a", "b"])
    mapped = QueryAdapter.load(adapted)(vector_of(question(3)))
    assert np.dot(made.embed_query(question(3)), mapped) > 0.99999 > np.dot(mapped, vector_of(question(3)))


@pytest.mark.parametrize(
    ("collection", "reason"),
    [
        ("other-length", f"another length than those of {MODEL} at URL (3 in the store, 1 from the model)"),
        ("other-model", f"holds no vectors of {MODEL} at URL (none of 8 chunks looked at has this model's"),
        ("other-record", f"holds no vectors of {MODEL} at URL (reindex recorded those of another model)"),
        ("other-size", f"(they have {2 * D} numbers, the model makes {D})"),
    ],
)
def test_vectors_that_are_not_the_endpoints_are_refused_with_the_reason(world, collection, reason, capsys):
    assert adapt_queries.main(command(world, collection, "refused")) == 2
    assert reason.replace("URL", world.url) in capsys.readouterr().err
    assert not list(world.folder.glob("*refused*"))


@pytest.mark.parametrize(("normalises", "reason"), [(True, ""), (False, "(1 in the store, 3 from the model)")])
def test_a_store_that_normalises_says_nothing_about_lengths(world, normalises, reason):
    chunks = [Chunk(f"c{n}", chunk_text(n), {}, vector_of(chunk_text(n))) for n in range(4)]
    with serving(EmbeddingServer(length=3.0)) as url:
        encoder = EndpointEncoder(EmbeddingConfig(model=MODEL, url=url))
        found = mismatch(encoder, Recorded("docs", D, {}, normalises, chunks))
    assert reason in found and bool(found) == bool(reason)


def test_the_first_numbers_of_vectors_that_a_store_keeps_are_taken_alike(world):
    assert adapt_queries.main(command(world, "first-half", "half")) == 0
    assert QueryAdapter.load(world.folder / "half").dim == D // 2


def test_search_maps_the_queries_and_refuses_other_documents_and_models(world, adapted, monkeypatch, capsys):
    shown = {}
    monkeypatch.setattr(search, "show", lambda query, sides: shown.setdefault(query, next(iter(sides.values()))))
    query = [question(5), "--query-adapter", str(adapted)]
    assert search.main([*query, *at(world, "docs")]) == 0
    stored = np.array([vector_of(chunk_text(number)) for number in range(COUNT)])
    scores = stored @ QueryAdapter.load(adapted)(vector_of(question(5)))
    assert [hit.id for hit in shown[question(5)]] == [f"c{n}" for n in np.argsort(-scores)[:3]]
    cases = {
        "holds other documents than those that the adapter was trained for": [*query, *at(world, "other-documents")],
        "holds no vectors of": [*query, *at(world, "other-model")],
        "--data: embeds texts anew": [*query, "--endpoint-model", MODEL, "--data", "set"],
        "--compare: embeds texts anew": [*query, *at(world, "docs", "--compare", "base")],
        "were read with '' before them": [*query, *at(world, "docs", "--query-prompt", "ask: ")],
        "--pooling: belongs to --model": [*query, *at(world, "docs", "--pooling", "cls")],
    }
    for said, argv in cases.items():
        assert search.main(argv) == 2, said
        assert said in capsys.readouterr().err


def test_evaluate_measures_the_stores_own_search_with_and_without_the_adapter(world, adapted, capsys):
    result, pairs = world.folder / "result.json", world.folder / "pairs.jsonl"
    argv = at(world, "docs", "--pairs", str(pairs), "--query-adapter", str(adapted), "--json", str(result))
    assert evaluate.main([*argv, "--metrics", "nDCG@10"]) == 0
    found = json.loads(result.read_text())
    data = load_collection(StoreConfig("chroma", "docs", path=world.folder / "chroma"), pairs)
    documents, queries = (np.array([vector_of(text) for text in side]) for side in (data.doc_texts, data.query_texts))
    sides = {"base": queries, "tuned": QueryAdapter.load(adapted)(queries)}
    for side, vectors in sides.items():
        exact = means(score_run(data.qrels, rank_documents(vectors, documents, data)))["nDCG@10"]
        assert abs(found["comparison"]["nDCG@10"][side] - exact) < 0.01, "Chroma's search is nearly exact here"
    assert found["query_adapter"] == str(adapted) and "by the store's own search" in capsys.readouterr().out
    assert evaluate.main([*argv, "--baseline", "model", "--dims", "8"]) == 2
    said = capsys.readouterr().err
    assert "--baseline: belongs to --model" in said and "--dims: belongs to --model" in said


def test_of_two_ranks_the_first_alone_asks(world):
    before = len(world.server.answered())
    extra = {"OPENAI_API_KEY": KEY, "EMBEDFLEET_CACHE": str(world.folder / "of-ranks")}
    done = forked.run_ranks(2, "-m", "trainer.adapt_queries", *command(world, "docs", "ranks"), **extra)
    assert done.returncode == 0, done.both
    assert set(Counter(world.server.answered()[before:]).values()) == {1}
    assert QueryAdapter.load(world.folder / "ranks").facts["queries"]["train"] == COUNT // 2


def test_an_adapter_of_a_closed_model_belongs_to_no_folder(world, adapted, tiny_bert, capsys):
    store = ["--path", str(world.folder / "chroma"), "--collection", "docs"]
    argv = ["q", *store, "--model", str(tiny_bert), "--query-adapter", str(adapted), "--device", "cpu"]
    assert search.main(argv) == 2
    assert f"the closed model {MODEL}; give --endpoint-model {MODEL}" in capsys.readouterr().err
    assert search.main([*argv, "--price-in", "1"]) == 2
    assert "--price-in: belongs to --endpoint-model" in capsys.readouterr().err
