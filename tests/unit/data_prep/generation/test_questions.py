"""Generation with a language model, by command and from Python, against a real server that fails on purpose."""

import asyncio
import hashlib
import json
import math
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from data_prep.common.console import duration
from data_prep.common.errors import BadInput, Failed
from data_prep.generation import concurrency, selection
from data_prep.generation.client import Retry
from data_prep.generation.config import QuestionGenerationConfig
from data_prep.generation.filters import Filters
from data_prep.generation.questions import QuestionGenerator
from data_prep.stores.chroma import ChromaCollection
from data_prep.stores.open import write_chunks
from tests.language_model import (
    FAULTS,
    FORMS,
    HOPELESS,
    KEY,
    MODEL,
    TOKENS_IN,
    TOKENS_OUT,
    LanguageModel,
    chunk,
    expected,
    serving,
    use_own_key,
)
from tests.launching import ROOT, environment
from tests.unit.data_prep.helpers import read_jsonl, run

COUNT = 40
FAST = Retry(attempts=6, first=0.01, longest=0.05)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "chroma"
    write_chunks(folder, "docs", [chunk(number) for number in range(COUNT)], "digest")
    return folder


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, tmp_path):
    """The key of the test server, an empty cache, and no .env of whoever runs the tests."""
    use_own_key(monkeypatch, tmp_path)
    monkeypatch.setenv("EMBEDFLEET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def generate(store, tmp_path, request):
    """Generates from the store with this server; returns the lines of the output."""

    def call(server, output="pairs.jsonl", encoder=None, **more):
        with serving(server) as url:
            settings = {"path": store, "collection_name": "docs", "model": MODEL, "base_url": url, "retry": FAST}
            config = QuestionGenerationConfig(**settings | {"output_path": tmp_path / output} | more)
            return read_jsonl(QuestionGenerator(config, encoder).generate())

    return call


def wanted(server: LanguageModel, numbers=range(COUNT)) -> list[tuple[str, str, str]]:
    """Returns the expected pairs, in order."""
    return [(f"doc-{n}", q, a) for n in numbers for q, a in expected(f"c{n}", server.form(f"c{n}"))]


def triples(lines: list[dict]) -> list[tuple[str, str, str]]:
    return [(line["chunk_id"], line["question"], line["answer"]) for line in lines]


def cache_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("cache/answers/*.jsonl"))


@pytest.mark.parametrize("concurrency", [3, 16])
def test_whatever_fails_every_answerable_pair_comes_out_once_in_order(generate, tmp_path, capsys, concurrency):
    faults = [fault for fault in FAULTS if fault != "timeout"]  # a busy machine would add some of its own
    server = LanguageModel(seed=3, share=0.3, faults=faults, forms=FORMS)
    lines = generate(server, concurrency=concurrency)
    assert triples(lines) == wanted(server)
    assert [list(line) for line in lines[:1]] == [["chunk_id", "question", "answer", "metadata", "context"]]
    assert all(line["context"] == chunk(line["metadata"]["page"]).text for line in lines)
    assert server.repeated() == []
    failed = {call.outcome for call in server.calls} - {"answered"}
    assert failed == set(faults)
    rejected = read_jsonl(tmp_path / "pairs.rejected.jsonl")
    hopeless = {f"doc-{n}" for n in range(COUNT) if server.form(f"c{n}") in HOPELESS}
    cut = {f"doc-{n}" for n in range(COUNT) if server.form(f"c{n}") == "truncated"}
    assert {line["chunk_id"] for line in rejected} == hopeless | cut
    assert all(line["reason"] and "raw" in line for line in rejected)
    assert {"refusal: I cannot help with that."} <= {line["reason"] for line in rejected}
    err = capsys.readouterr().err
    assert f"this run: {COUNT} answers, " in err
    assert f"{COUNT * TOKENS_IN:,} + {COUNT * TOKENS_OUT} tokens" in err
    assert "x cut off" in err
    for path in [*tmp_path.rglob("*")]:
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path
    assert KEY not in err


def test_no_answered_chunk_is_asked_again_where_only_the_output_changes(generate, tmp_path, capsys, monkeypatch):
    server = LanguageModel(forms=FORMS)
    first = generate(server)
    monkeypatch.delenv("OPENAI_API_KEY")  # what is answered needs no key and no server
    again = generate(server, output="elsewhere/other.jsonl", base_url=None)
    assert first == again
    assert len(server.calls) == COUNT
    assert (tmp_path / "pairs.jsonl").read_bytes() == (tmp_path / "elsewhere" / "other.jsonl").read_bytes()
    assert "(0 answers from this run, 40 from before)" in capsys.readouterr().out


def test_other_questions_are_asked_again(generate, tmp_path):
    server = LanguageModel()
    prompt = tmp_path / "p.txt"
    prompt.write_text("{n} about {context}")
    generate(server, limit=2, prompt_path=prompt, prompt_variables={"n": "1"})
    generate(server, limit=2, prompt_path=prompt, prompt_variables={"n": "2"})
    generate(server, limit=2, prompt_path=prompt, prompt_variables={"n": "2"}, temperature=0.0)
    generate(server, limit=2, prompt_path=prompt, prompt_variables={"n": "2"}, system_prompt="Be kind.")
    assert len(server.calls) == 8
    assert [call.body["messages"][-1]["content"][:7] for call in server.calls] == ["1 about"] * 2 + ["2 about"] * 6
    assert len(cache_files(tmp_path)) == 4


def test_a_longer_selection_asks_about_the_rest_only(generate):
    server = LanguageModel()
    assert triples(generate(server, limit=5)) == wanted(server, range(5))
    assert triples(generate(server, limit=9)) == wanted(server, range(9))
    assert len(server.calls) == 9


def test_a_larger_sample_contains_the_smaller(generate):
    server = LanguageModel()
    small = [line["chunk_id"] for line in generate(server, sample=4)][::2]
    large = [line["chunk_id"] for line in generate(server, sample=10)][::2]
    assert (len(small), len(large), len(server.calls)) == (4, 10, 10)
    assert set(small) < set(large)
    assert large == sorted(large, key=lambda name: int(name[4:]))
    assert large != [f"doc-{n}" for n in range(10)]
    other = [line["chunk_id"] for line in generate(server, sample=10, seed=1)][::2]
    assert other != large


def test_equal_chunks_are_asked_about_once(generate, tmp_path):
    twins = [chunk(1), chunk(2), chunk(1)]
    twins[2].id = "twin"
    write_chunks(tmp_path / "twins", "docs", twins, "digest")
    server = LanguageModel(delay=0.05)
    lines = generate(server, path=tmp_path / "twins", concurrency=3)
    assert [line["chunk_id"] for line in lines] == ["doc-1", "doc-1", "doc-2", "doc-2", "twin", "twin"]
    assert len(server.calls) == 2


def test_concurrency_is_used_after_the_first_answer(generate):
    server = LanguageModel(delay=0.1)
    generate(server, concurrency=6, limit=19)
    assert server.most_at_once == 6
    first, second, *_ = server.calls
    assert second.at - first.at >= 0.09  # a wrong key or model shows at one call


def test_an_error_of_the_user_costs_one_call_and_loses_nothing(generate, tmp_path):
    server = LanguageModel(script={f"c{n}": ["401"] for n in range(20, COUNT)}, delay=0.05)
    with pytest.raises(BadInput, match=r"answers 401: 401 for key \[hidden\]; OPENAI_API_KEY is not accepted"):
        generate(server, concurrency=4)
    assert not (tmp_path / "pairs.jsonl").exists()
    assert server.counts()["401"] <= 4
    answered = server.counts()["answered"]
    assert answered >= 20  # also those under way when the first 401 came
    server.script = {}
    assert triples(generate(server)) == wanted(server)
    assert server.repeated() == []
    assert server.counts()["answered"] == COUNT


def test_what_stays_silent_is_named_and_asked_again(generate, tmp_path):
    server = LanguageModel(script={"c7": ["500"], "c9": ["400 too_long"]})
    with pytest.raises(Failed, match=r"1 chunks have no answer yet .* run the same command again"):
        generate(server)
    assert triples(read_jsonl(tmp_path / "pairs.jsonl")) == wanted(server, [n for n in range(COUNT) if n not in (7, 9)])
    reasons = {line["chunk_id"]: line["reason"] for line in read_jsonl(tmp_path / "pairs.rejected.jsonl")}
    assert reasons["doc-7"].startswith("no answer after 6 calls: the server answers 500")
    assert reasons["doc-9"].startswith("refused by the server: 400")
    server.script = {"c9": ["400 too_long"]}
    assert triples(generate(server)) == wanted(server, [n for n in range(COUNT) if n != 9])
    assert server.repeated() == []


def test_answers_without_a_pair_leave_no_output(generate, tmp_path):
    with pytest.raises(Failed, match=r"no pair came out, so .*pairs\.jsonl is not written; .*rejected.jsonl says why"):
        generate(LanguageModel(forms=("refusal", "empty list")), limit=6)
    assert not (tmp_path / "pairs.jsonl").exists()
    assert len(read_jsonl(tmp_path / "pairs.rejected.jsonl")) == 6


def test_cost_is_shown_and_answers_of_another_server_are_named(generate, capsys):
    generate(LanguageModel(), limit=10, price_in=1000, price_out=5000)
    assert "1,000 + 200 tokens, cost 2.0000" in capsys.readouterr().err
    generate(LanguageModel(), limit=11)
    assert "note: 10 answers in that file came from http://127.0.0.1:" in capsys.readouterr().err


def test_the_usage_beside_the_output_counts_every_answer_once(generate, tmp_path):
    generate(LanguageModel(), limit=4)
    usage = json.loads((tmp_path / "pairs.usage.json").read_text())
    assert usage["cost"] is usage["price_in"] is None and (usage["tokens_in"], usage["tokens_out"]) == (400, 80)
    pairs = len(generate(LanguageModel(), limit=10, price_in=1000, price_out=5000))  # six more answers
    usage = json.loads((tmp_path / "pairs.usage.json").read_text())
    assert (usage["pairs"], usage["answers"], usage["answers_without_a_count"]) == (pairs, 10, 0)
    assert usage["cost"] == pytest.approx((1000 * 1000 + 200 * 5000) / 1e6)


def test_progress_shows_pairs_tokens_cost_and_time_left(generate, capsys, monkeypatch):
    monkeypatch.setattr("data_prep.common.console.EVERY_SECONDS", 0.0)
    generate(LanguageModel(), limit=2)
    capsys.readouterr()
    generate(LanguageModel(), limit=4, price_in=1, price_out=1, concurrency=1)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("asking: ")]
    assert [re.sub(r"\d+ s left", "N s left", line) for line in lines] == [
        "asking: 3 of 4, 2 pairs, 100 + 20 tokens, cost 0.0001, N s left",
        "asking: 4 of 4, 4 pairs, 200 + 40 tokens, cost 0.0002, N s left",
    ]


@pytest.mark.parametrize("seconds, words", [(0.4, "0 s"), (99, "99 s"), (700, "12 min"), (12_000, "3 h 20 min")])
def test_durations_for_people(seconds, words):
    assert duration(seconds) == words


@pytest.fixture
def work(monkeypatch):
    """Counts scans of the collection, of ids only too, and parsed answers."""
    counts = Counter()

    def counted(target, name):
        original = getattr(target, name)

        def call(*args, **more):
            counts[name] += 1
            return original(*args, **more)

        monkeypatch.setattr(target, name, call)

    counted(ChromaCollection, "_pages")
    counted(concurrency, "parse")
    counted(selection, "parse")
    return counts


@pytest.mark.parametrize(
    "more, chunks",
    [
        ({}, COUNT),
        ({"limit": 5}, 5),
        ({"sample": 6}, 6),
        ({"where": {"page": {"$lt": 9}}, "limit": 4, "filters": Filters(round_trip=5)}, 4),
        ({"where": {"page": {"$lt": 9}}, "sample": 4, "filters": Filters(round_trip=5)}, 4),
    ],
)
def test_the_collection_is_scanned_once_and_each_answer_parsed_once(generate, tmp_path, work, more, chunks):
    server = LanguageModel(seed=3, forms=FORMS)
    generate(server, **more)
    assert work == {"_pages": 1, "parse": chunks}
    work.clear()
    generate(server, "again.jsonl", **more)  # from the cache
    assert work == {"_pages": 1, "parse": chunks}
    assert (tmp_path / "pairs.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    assert len(server.calls) == chunks
    left = {path.name for path in tmp_path.iterdir()} - {"cache"}
    assert left == {
        f"{name}.{kind}" for name in ("pairs", "again") for kind in ("jsonl", "rejected.jsonl", "usage.json")
    }


def test_answers_of_an_earlier_run_and_of_equal_chunks_are_parsed_once(generate, tmp_path, work):
    twins = [chunk(1), chunk(2), chunk(1)]
    twins[2].id = "twin"
    write_chunks(tmp_path / "twins", "docs", twins, "digest")
    server = LanguageModel()
    generate(server, path=tmp_path / "twins", limit=1)
    work.clear()
    assert len(generate(server, path=tmp_path / "twins")) == 6
    assert work == {"_pages": 1, "parse": 2}
    assert len(server.calls) == 2


def test_a_sample_is_the_smallest_hashes(generate):
    def draw(chunk_id):
        return hashlib.blake2b(f"7:{chunk_id}".encode(), digest_size=16).digest()

    lines = generate(LanguageModel(), sample=9, seed=7)
    assert {line["chunk_id"] for line in lines} == set(sorted((f"doc-{n}" for n in range(COUNT)), key=draw)[:9])


def test_where_narrows_what_is_asked_about(generate):
    server = LanguageModel()
    assert triples(generate(server, where={"page": {"$lt": 3}})) == wanted(server, range(3))
    with pytest.raises(BadInput, match="no chunk fits --where"):
        generate(server, where={"page": 999})


def test_a_missing_extra_is_named_before_any_call(generate, monkeypatch):
    from data_prep.generation import questions

    server = LanguageModel()
    monkeypatch.setattr(questions, "find_spec", lambda name: None if name == "openai" else name)
    with pytest.raises(Failed, match=r"needs openai: pip install 'embedfleet\[llm\]'"):
        generate(server)
    assert server.calls == []


def test_in_a_notebook_whose_loop_runs(generate):
    server = LanguageModel()

    async def cell():
        return generate(server, limit=3)

    assert triples(asyncio.run(cell())) == wanted(server, range(3))


def test_from_a_qdrant_collection(generate, tmp_path, capsys):
    pytest.importorskip("qdrant_client")
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=str(tmp_path / "qdrant"))
    client.create_collection("docs", models.VectorParams(size=1, distance=models.Distance.COSINE))
    payloads = [{"text": chunk(n).text, "page": n} | ({"price": math.nan} if n == 1 else {}) for n in range(5)]
    points = [models.PointStruct(id=n, vector=[1.0], payload=payload) for n, payload in enumerate(payloads)]
    client.upsert("docs", points)
    client.close()
    server = LanguageModel()
    lines = generate(server, db_type="qdrant", path=tmp_path / "qdrant")
    assert [line["chunk_id"] for line in lines] == [str(n) for n in range(5) for _ in range(2)]
    assert lines[0]["metadata"] == {"page": 0}
    assert lines[2]["metadata"] == {"page": 1, "price": None}
    assert "note: 2 pairs: their metadata holds NaN or infinity" in capsys.readouterr().err


def test_filters_keep_aside_what_they_leave_out(generate, tmp_path, capsys):
    server = LanguageModel()
    lines = generate(server, filters=Filters(question_words=(6, 9)), limit=10)
    assert [line["question"][:2] for line in lines] == ["At"] * 10  # the other has 5 words
    rejected = read_jsonl(tmp_path / "pairs.rejected.jsonl")
    assert {(line["reason"], line["answer"][:5]) for line in rejected} == {
        ("question length: 5 words, wanted 6 to 9", "Every")
    }
    assert (
        "left out: 10 x question length, such as doc-0: question length: 5 words, wanted 6 to 9"
        in capsys.readouterr().err
    )


def test_an_encoder_from_python_takes_the_round_trip(generate, tmp_path):
    import numpy as np

    class Numbers:
        """Knows the valve's number, but takes a question about 3 for one about 4."""

        def passages(self, texts):
            return np.eye(COUNT)[[self.number(text) for text in texts]]

        def queries(self, texts):
            return np.eye(COUNT)[[4 if self.number(text) == 3 else self.number(text) for text in texts]]

        def number(self, text):
            return int("".join(c for c in text.split("valve ")[1].split()[0] if c.isdigit()))

    lines = generate(LanguageModel(), filters=Filters(round_trip=1), limit=6, encoder=Numbers())
    assert sorted({line["chunk_id"] for line in lines}) == ["doc-0", "doc-1", "doc-2", "doc-4", "doc-5"]


def test_every_problem_of_the_options_is_listed_before_any_call(store, tmp_path, capsys):
    server = LanguageModel()
    prompt = tmp_path / "p.txt"
    prompt.write_text("{contxt} {{}}")
    with serving(server) as url:
        options = "--collection docs --model m --limit 0 --sample 3 --concurrency 0 --timeout 0 --temperature -1"
        options += " --price-in 1 --grounded 2 --round-trip 0 --near-duplicates 0.5 --question-words 9-3 --var a=b"
        where = ("--path", store, "--base-url", url, "--prompt", prompt, "--output", tmp_path / "o.csv")
        code, out, err = run(capsys, "generate", *options.split(), *where)
    assert (code, out) == (2, "")
    for part in (
        "o.csv: must end in .jsonl",
        "--limit 0: must be 1 or more",
        "--limit and --sample: choose one",
        "--concurrency 0: must be 1 or more",
        "--timeout 0: must be above 0",
        "--temperature -1: must be 0 or more",
        "--price-in and --price-out: give both",
        "--grounded 2: must be a share",
        "--round-trip 0: must be 1 or more",
        "--near-duplicates 0.5",
        "--question-words 9-3: must be MIN-MAX",
        "p.txt:1: unknown placeholder {contxt}; known: {context}, {a} ",
        "p.txt: has no {context}",
        "--var a: ",
    ):
        assert part in err
    assert server.calls == []


@pytest.mark.parametrize(
    "options, reasons",
    [
        ("", ["--model: name the language model to ask, or add --offline for pairs without one"]),
        ("--model m --hide name", ["--hide: belongs to generation without one; add --offline"]),
        ("--model m --var n", ["--var n: must be NAME=TEXT"]),
        ("--model m --var n=1 --var n=2", ["--var n: is given twice"]),
        ("--model m --answer-words few", ["--answer-words few: must be MIN-MAX, such as 3-40"]),
        (
            "--offline --model m --sample 3 --same-language",
            ["--model: belongs to a language model; leave out", "--sample: belongs", "--same-language: belongs"],
        ),
    ],
)
def test_options_that_do_not_go_together(store, tmp_path, capsys, options, reasons):
    where = ("--path", store, "--collection", "docs", "--output", tmp_path / "o.jsonl")
    code, _, err = run(capsys, "generate", *options.split(), *where)
    assert code == 2
    for reason in reasons:
        assert reason in err


def test_the_command_from_collection_to_shards(store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with serving(LanguageModel()) as url:
        where = ("--path", store, "--collection", "docs", "--base-url", url, "--output", tmp_path / "o.jsonl")
        options = ("--model", MODEL, "--var", "n=2", "--prompt", tmp_path / "p.txt", "--limit", "4", "--seed", "1")
        (tmp_path / "p.txt").write_text("{n}: {context}")
        code, out, err = run(
            capsys, "generate", *where, *options, "--near-duplicates", "0.95", "--cache", tmp_path / "c"
        )
    assert code == 0, err
    assert "o.jsonl: 8 pairs from 4 chunks (4 answers from this run, 0 from before)" in out
    assert (
        f"asking {MODEL} at {url} (key from OPENAI_API_KEY), 8 at a time; answers are kept in {tmp_path / 'c'}" in err
    )
    code, *_ = run(capsys, "compose", tmp_path / "o.jsonl", "--output", tmp_path / "r.jsonl", "--positive", "answer")
    assert code == 0
    follows = shlex.split(err.splitlines()[-1].removeprefix("Next: python -m data_prep "))
    assert run(capsys, *follows, "--eval-fraction", "0")[0] == 0, follows
    assert read_jsonl(tmp_path / "r.jsonl")[0]["doc_ids"] == ["doc-0"]


def test_a_part_writes_no_pairs_and_names_no_command_that_reads_them(store, tmp_path, capsys):
    where = ("--path", store, "--collection", "docs", "--model", MODEL, "--output", tmp_path / "o.jsonl")
    with serving(LanguageModel()) as url:
        code, out, err = run(capsys, "generate", *where, "--base-url", url, "--cache", tmp_path / "c", "--part", "1/2")
    assert code == 0 and "pairs are written by --join" in out and "Next:" not in err, err


def test_seeds_of_a_server_by_host_and_port():
    def store_of(**more):
        return QuestionGenerationConfig(collection_name="docs", output_path="o.jsonl", model="m", **more).store()

    assert store_of(db_type="qdrant", host="localhost", port=6334).url == "http://localhost:6334"
    assert store_of(db_type="chroma", host="localhost", port=8001).place == "--host localhost --port 8001"


def test_the_package_offers_the_generator_and_stays_light():
    code = "import sys, data_prep; assert 'data_prep.generation.questions' not in sys.modules\n"
    code += "from data_prep import QuestionGenerator, QuestionGenerationConfig\n"
    code += "heavy = {'torch', 'openai', 'chromadb', 'json_repair'} & set(sys.modules); assert not heavy, heavy\n"
    code += "import pytest\nwith pytest.raises(AttributeError): data_prep.nothing"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
