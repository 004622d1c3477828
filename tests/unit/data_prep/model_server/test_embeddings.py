"""Vectors of texts from an endpoint that fails on purpose: each text is paid once, whatever is lost or refused."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep.common.errors import BadInput, Failed
from data_prep.model_server import embeddings
from data_prep.model_server.client import Retry
from data_prep.model_server.embeddings import EmbeddingConfig, TextVectors
from tests.embedding_server import D, EmbeddingServer, vector_of
from tests.language_model import KEY, MODEL, serving, use_own_key

FAST = Retry(attempts=8, first=0.001, longest=0.01)
TEXTS = [f"text {number} about {number % 7} things" for number in range(150)]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, tmp_path):
    """The key of the test server, no .env of whoever runs the tests, and small batches."""
    use_own_key(monkeypatch, tmp_path)
    monkeypatch.setattr(embeddings, "BATCH", 16)


def vectors(url: str, **more) -> TextVectors:
    return TextVectors(EmbeddingConfig(**{"model": MODEL, "url": url, "retry": FAST, "cache": Path("cache")} | more))


def test_whatever_fails_every_vector_comes_once_and_in_order(capsys):
    passing = ("429", "500", "503", "dropped", "half-closed", "error in 200")
    server = EmbeddingServer(share=0.3, faults=passing, retry_after="0.01")
    with serving(server) as url:
        found = vectors(url, price_in=2.0).of([*TEXTS, TEXTS[3]])
        assert server.counts()["answered"] < len(server.calls)
        assert Counter(server.answered()) == Counter(TEXTS)
        np.testing.assert_array_equal(found, [vector_of(text) for text in [*TEXTS, TEXTS[3]]])
        asked = len(server.calls)
        np.testing.assert_array_equal(vectors(url).of(TEXTS[::-1]), found[:150][::-1])
        assert len(server.calls) == asked, "a second run asks nothing"
        vectors(url).of([*TEXTS, "one more"])
        assert server.answered()[len(TEXTS) :] == ["one more"]
    said = capsys.readouterr().err
    assert f"asking {MODEL} at {url} (key from OPENAI_API_KEY)" in said
    assert re.search(r"this run so far: 150 vectors, 750 tokens, cost 0\.0015, repeated calls: .* x ", said)
    assert KEY not in said and all(KEY.encode() not in file.read_bytes() for file in Path("cache").iterdir())


def test_what_is_sent_and_that_another_model_or_address_has_vectors_of_its_own():
    server = EmbeddingServer()
    with serving(server) as url, serving(server) as other:
        vectors(url).of(["a"])
        vectors(other).of(["a"])
        assert server.calls[0].body == {"model": MODEL, "input": ["a"], "encoding_format": "float"}
        with pytest.raises(BadInput, match=f"404.*--endpoint-model tiny-aske: the server has {MODEL}"):
            vectors(url, model="tiny-aske").of(["a"])
        assert server.answered() == ["a", "a"]


def test_a_text_that_is_refused_costs_no_other_its_vector():
    server = EmbeddingServer(refused="42 about 0")
    with serving(server) as url:
        with pytest.raises(BadInput, match="no vector for 1 of 150 texts, such as 'text 42 about 0 things': refused"):
            vectors(url).of(TEXTS)
        others = [text for text in TEXTS if "42 about 0" not in text]
        assert Counter(server.answered()) == Counter(others)
        vectors(url).of(others)
        assert len(server.answered()) == len(others)


def test_a_server_that_takes_smaller_batches_gets_them(capsys):
    server = EmbeddingServer(most=5)
    with serving(server) as url:
        vectors(url, concurrency=1).of(TEXTS)
    assert Counter(server.answered()) == Counter(TEXTS)
    assert server.counts()["422 batch"] == 3, "16, 8 and 8 texts"
    assert "asking for 4 texts at a time" in capsys.readouterr().err


def test_a_wrong_key_costs_one_call_and_a_server_that_refuses_all_few():
    server = EmbeddingServer(key="another")
    with serving(server) as url:
        with pytest.raises(BadInput, match=r"answers 401: .*OPENAI_API_KEY is not accepted"):
            vectors(url).of(TEXTS)
        assert len(server.calls) == 1
    server = EmbeddingServer(refused="text")
    with serving(server) as url:
        with pytest.raises(Failed, match="no answer for 10 texts in a row: 400"):
            vectors(url, concurrency=1).of(TEXTS)
        assert len(server.calls) < 30


def test_what_stays_silent_is_named_and_asked_again():
    server = EmbeddingServer(script={"*": ["answered"]}, retry_after="0.001")
    silent = server.name_of({"input": TEXTS[16:32]})
    server.script[silent] = ["503"] * FAST.attempts + ["answered"]
    with serving(server) as url:
        with pytest.raises(Failed, match="no vector yet for 16 of 150 texts.*run the same command again"):
            vectors(url).of(TEXTS)
        vectors(url).of(TEXTS)
    assert Counter(server.answered()) == Counter(TEXTS)


def test_answers_that_are_no_vectors_are_repeated_and_a_count_that_is_missing_is_said(capsys):
    wrong = ['{"data": []}', '{"data": [{"embedding": ["x"]}]}', '{"data": [{"embedding": []}]}']
    with serving(EmbeddingServer(script={"*": [*(f"200 {body}" for body in wrong), "answered"]}, counted=False)) as url:
        assert vectors(url).of(["a"]).shape == (1, D)
    assert "1 vectors, 0 tokens (1 texts without a count), repeated calls: no vectors x 3" in capsys.readouterr().err


def test_vectors_of_two_sizes_under_one_name_are_refused():
    server = EmbeddingServer()
    with serving(server) as url:
        vectors(url).of(["a"])
        server.size = D + 1
        with pytest.raises(BadInput, match=rf"vectors of {D}, {D + 1} numbers, so it is not one model; delete .*cache"):
            vectors(url).of(["a", "b"])


def test_wrong_settings_are_listed_together():
    wrong = EmbeddingConfig(model="m", concurrency=0, timeout=0, price_in=-1)
    assert [problem.split()[0] for problem in wrong.problems()] == ["--concurrency", "--timeout", "--price-in"]
