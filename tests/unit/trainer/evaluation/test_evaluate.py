"""trainer.evaluate with tiny models: metrics by name, sizes, quantised vectors, several sets, pairs, categories."""

import json
import random

import numpy as np
import pytest

from data_prep.reading.retrieval_sets import load_evaluation, load_set
from data_prep.sharding.build import shard
from tests import tiny
from trainer.config.sections import ModelConfig
from trainer.evaluate import main
from trainer.evaluation.compare import means
from trainer.evaluation.measure import cosines
from trainer.evaluation.quantised import rank_quantised
from trainer.evaluation.ranking_metrics import score_run
from trainer.inference.metrics import rank_documents
from trainer.inference.text_encoder import TextEncoder


def text(rng, words=6):
    return " ".join(rng.choices(tiny.WORDS, k=words))


def write_set(folder, seed):
    """30 queries, each a part of its document, with a topic; 60 documents with a language."""
    rng = random.Random(seed)
    folder.mkdir()
    docs = [{"_id": f"d{i}", "text": text(rng), "lang": rng.choice(["en", "de"])} for i in range(60)]
    queries = [
        {"_id": f"q{i}", "text": " ".join(docs[i]["text"].split()[:3]), "metadata": {"topic": "[x]" if i < 20 else "y"}}
        for i in range(30)
    ]
    for name, rows in (("corpus", docs), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels.tsv").write_text("".join(f"q{i}\td{i}\t{1 + i % 2}\n" for i in range(30)))
    return folder


def pairs(seed, count, score_of=lambda share: share):
    rng, rows = random.Random(seed), []
    for _ in range(count):
        words, share = text(rng).split(), rng.random()
        same = round(6 * share)
        item = " ".join([*words[:same], *rng.choices(tiny.WORDS, k=6 - same)])
        rows.append({"query": " ".join(words), "item": item, "score": score_of(share), "kind": rng.choice("pq")})
    return rows


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    files = {"a": write_set(folder / "a", 1), "b": write_set(folder / "b", 2)}
    files["scored"] = write_rows(folder / "scored.jsonl", pairs(3, 40))
    files["labels"] = write_rows(folder / "labels.jsonl", pairs(4, 40, lambda share: int(share > 0.5)))
    rows = [{"query": text(random.Random(i), 3), "positives": [text(random.Random(i + 99))]} for i in range(20)]
    mixed = write_rows(folder / "mixed.jsonl", rows + pairs(5, 20))
    shard([mixed], folder / "mixed", eval_fraction=0.6)
    return files | {"mixed": folder / "mixed"}


@pytest.fixture
def evaluate(tiny_bert, tmp_path, monkeypatch):
    def call(*args, model=tiny_bert, code=0):
        out = tmp_path / "out.json"
        assert main(["--model", str(model), "--device", "cpu", "--json", str(out), *map(str, args)]) == code
        return json.loads(out.read_text()) if code == 0 else None

    return call


def embedded(model, data):
    encoder = TextEncoder(ModelConfig(path=str(model)), "cpu")
    return encoder.queries(data.query_texts), encoder.passages(data.doc_texts)


def test_metrics_by_name_of_several_sets_in_one_table(evaluate, sets, tiny_bert, capsys):
    names = ["nDCG@5", "recall@20", "R-precision", "spearman"]
    result = evaluate("--data", sets["a"], sets["b"], sets["labels"], "--metrics", *names)
    assert [one["data"] for one in result["sets"]] == [str(sets[name]) for name in ("a", "b", "labels")]
    shown = capsys.readouterr()
    table = shown.out
    assert shown.err.endswith(f"Next: python -m trainer.search QUERY --model {tiny_bert} --data {sets['a']}\n")
    for one in result["sets"]:
        assert list(one["metrics"]) == (names[:3] if "queries" in one else names[3:])
        assert all(f"{value:.4f}" in table for value in one["metrics"].values())
    assert "a (30 queries)" in table and "labels.jsonl (40 pairs)" in table and table.count("━┓") == 1
    alone = evaluate("--data", sets["b"], "--metrics", *names[:3])
    assert alone["metrics"] == result["sets"][1]["metrics"] and alone["queries"] == 30 and "sets" not in alone


def test_scored_pairs_and_labels(evaluate, sets, tiny_bert):
    from scipy import stats

    data = load_evaluation(sets["scored"])
    result = evaluate("--data", sets["scored"])
    own = cosines(data, *embedded(tiny_bert, data))
    assert result["pairs"] == 40 and "documents" not in result
    assert result["metrics"]["spearman"] == pytest.approx(stats.spearmanr(own, data.scores).statistic, abs=1e-4)
    assert result["metrics"]["pearson"] == pytest.approx(stats.pearsonr(own, data.scores).statistic, abs=1e-4)
    assert set(result["metrics"]) == {"spearman", "pearson"}
    assert set(evaluate("--data", sets["labels"])["metrics"]) == {"spearman", "pearson", "auc", "average_precision"}


def test_an_eval_split_of_both_kinds_is_measured_in_both_ways(evaluate, sets):
    result = evaluate("--data", sets["mixed"])
    assert "nDCG@10" in result["metrics"] and result["queries"] > 0
    assert set(result["scored_pairs"]["metrics"]) == {"spearman", "pearson"} and result["scored_pairs"]["pairs"] > 1
    assert "evaluated separately" in result["notes"][0]


def test_sizes_and_quantised_vectors_of_one_embedding(evaluate, sets, tiny_bert, capsys):
    result = evaluate("--data", sets["a"], "--dims", 16, 32, "--quantised", "int8", "binary", "--metrics", "nDCG@7")
    forms = {(row["size"], row["vectors"], row["rescored"]): row["metrics"]["nDCG@7"] for row in result["variants"]}
    assert len(forms) == len(result["variants"]) == 10 and next(iter(forms)) == (32, "float32", False)
    data = load_set(sets["a"])
    for size in (32, 16):
        encoder = TextEncoder(ModelConfig(path=str(tiny_bert)), "cpu", dim=size)
        sides = encoder.queries(data.query_texts), encoder.passages(data.doc_texts)
        assert np.linalg.norm(sides[0], axis=1) == pytest.approx(1, abs=1e-5)
        expected = means(score_run(data.qrels, rank_documents(*sides, data), ["nDCG@7"]))["nDCG@7"]
        assert forms[size, "float32", False] == pytest.approx(expected, abs=1e-3)
        for kind in ("int8", "binary"):
            for rescored, run in enumerate(rank_quantised(*sides, data, kind)):
                expected = means(score_run(data.qrels, run, ["nDCG@7"]))["nDCG@7"]
                assert forms[size, kind, bool(rescored)] == pytest.approx(expected, abs=0.02), (size, kind)
    assert len(set(forms.values())) > 5 and result["metrics"]["nDCG@7"] == forms[32, "float32", False]
    table = capsys.readouterr().out
    assert "16 binary, rescored" in table and "…" not in table, "nothing is cut in 80 columns"


def test_a_baseline_gives_every_set_and_size_its_interval(evaluate, sets, tmp_path, tiny_bert, capsys):
    other = tiny.model(tmp_path / "other", pooling="cls")
    args = ["--data", sets["a"], sets["labels"], "--dims", 8, "--baseline", other, "--as-stated", "--by", "kind"]
    result = evaluate(*args)
    ranked, scored = result["sets"]
    for one in (ranked, scored):
        assert [row["size"] for row in one["variants"]] == [32, 8]
        for row in one["variants"]:
            for name, compared in row["comparison"].items():
                low, high = compared["interval_95"]
                assert low <= compared["difference"] <= high and compared["tuned"] == row["metrics"][name]
        assert one["comparison"] == one["variants"][0]["comparison"]
    assert ranked["comparison"]["nDCG@10"]["difference"] > 0.05, "mean pooling finds words, a random CLS less"
    assert "by" not in ranked and set(scored["by"]["categories"]) == {"p", "q"}
    assert result["baseline"] == str(other) and {"read", "baseline_read"} <= result.keys()
    shown = capsys.readouterr()
    assert "labels.jsonl by kind of the pairs: spearman" in shown.out and "nothing of a has this field" in shown.err


def test_categories_of_queries_and_documents(evaluate, sets, capsys):
    result = evaluate("--data", sets["a"], "--by", "topic", "--metrics", "MAP")
    by = result["by"]
    assert {name: row["queries"] for name, row in by["categories"].items()} == {"[x]": 20, "y": 10}
    mean = sum(row["queries"] * row["metrics"]["MAP"] for row in by["categories"].values()) / 30
    assert mean == pytest.approx(result["metrics"]["MAP"])
    assert "a by topic of the queries" in (shown := capsys.readouterr().out) and "[x]" in shown
    assert evaluate("--data", sets["a"], "--by", "lang")["by"]["owner"] == "documents"


REFUSED = {
    ("a", "--metrics ndcg@5 recall@1001"): [
        "'ndcg@5' is no metric. Did you mean 'nDCG@5'?",
        "recall@1001: the cut-off",
    ],
    ("a", "--metrics spearman"): ["spearman is of scored pairs, and no set has scores"],
    ("scored", "--metrics MAP auc"): ["MAP is of a ranking", "auc needs labels"],
    ("scored", "--quantised int8 --dims 0"): ["--dims 0: must be 1 or more", "--quantised: is about search"],
    ("a", "--dims 33"): ["--dims 33: ", "makes embeddings of 32 numbers"],
    ("a", "--by topik"): ["--by topik: no query or document has this field. Did you mean 'topic'? Fields: lang, topic"],
    ("scored", "--pairs x.jsonl"): ["name what is evaluated on"],
    ("a", "--json out.txt"): ["error: --json out.txt: must end in .json"],
}


@pytest.mark.parametrize(("name", "args"), REFUSED)
def test_what_does_not_fit_is_refused_with_every_reason(evaluate, sets, capsys, name, args):
    evaluate("--data", sets[name], *args.split(), code=2)
    said = capsys.readouterr().err
    assert all(reason in said for reason in REFUSED[name, args]), said


def test_a_result_in_place_of_a_set_is_refused(evaluate, sets, tmp_path, capsys):
    scored = tmp_path / "scored.json"
    scored.write_text(json.dumps(pairs(3, 40)))
    (tmp_path / "set").symlink_to(sets["a"])
    (sets["a"] / "state.json").write_text("{}")
    for data, out, reason in (
        (scored, scored, "is also an input"),
        (tmp_path / "set", sets["a"] / "state.json", f"would replace a file of the input {tmp_path / 'set'}"),
    ):
        before = out.read_bytes()
        evaluate("--data", data, "--json", out, code=2)
        assert f"error: --json {out}: {reason}; choose another name" in capsys.readouterr().err
        assert out.read_bytes() == before


def test_files_that_are_no_scored_pairs(evaluate, sets, tmp_path, capsys):
    plain = write_rows(tmp_path / "plain.jsonl", [{"query": "w1", "positive": "w2"}, pairs(1, 1)[0]])
    same = write_rows(tmp_path / "same.jsonl", pairs(1, 3, lambda share: 0.5))
    wrong = write_rows(tmp_path / "wrong.jsonl", pairs(1, 1, lambda share: 4.5))
    evaluate("--data", plain, same, wrong, tmp_path / "nowhere", sets["a"], sets["a"], code=2)
    said = capsys.readouterr().err
    assert "plain.jsonl: 1 of 2 rows have no score" in said and "a retrieval set is a folder" in said
    assert "same.jsonl: every pair has the score 0.5" in said and "outside 0..1" in said
    assert "nowhere: no such folder" in said and "a: stands twice" in said
    assert "error: 5 problems" in said
