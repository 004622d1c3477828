"""Choice among ranked candidates: what a margin leaves out, the window of ranks, and samples of it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.mining.bm25 import Bm25
from data_prep.mining.candidates import Corpus
from data_prep.mining.choice import Choice
from data_prep.mining.miner import Miner
from data_prep.records import Record
from tests.unit.data_prep.helpers import read_jsonl, run, write_jsonl, write_records
from tests.unit.data_prep.mining.helpers import Planted, at_cosine, corpus_of, dense_of

# --- margins ---


def mined_at(tmp_path, cosines: dict[str, float], positives: dict[str, float], choice: Choice):
    """Returns the choice for a query whose positives and candidates have these cosines to it; and the counts."""
    texts = cosines | positives
    vectors = {text: at_cosine(c, axis=1 + i % 7) for i, (text, c) in enumerate(texts.items())}
    encoder = Planted(vectors | {"q:asked": at_cosine(1.0)})
    rows = [Record("asked", list(positives)), *(Record(f"other {i}", [text]) for i, text in enumerate(cosines))]
    corpus = corpus_of(rows)
    miner = Miner(corpus, choice, [dense_of(corpus, encoder, tmp_path)])
    miner.add(rows[:1])
    return rows[0].negatives, miner.counts


CANDIDATES = {"a": 0.95, "b": 0.801, "c": 0.759, "d": 0.7, "e": 0.5, "f": -0.2}


@pytest.mark.parametrize(
    ("settings", "expected", "dropped"),
    [
        ({}, ["a", "b", "c"], 0),
        ({"margin": 0.0}, ["c", "d", "e"], 2),
        ({"relative_margin": 0.0}, ["c", "d", "e"], 2),
        ({"relative_margin": 0.05}, ["c", "d", "e"], 2),  # 95 % of 0.8 is 0.76
        ({"relative_margin": 0.06}, ["d", "e", "f"], 3),
        ({"margin": 0.2}, ["e", "f"], 4),
        ({"margin": 0.09, "relative_margin": 0.05}, ["d", "e", "f"], 3),
        ({"first": 2, "stop": 5}, ["c", "d", "e"], 0),
        ({"first": 1, "stop": 4, "margin": 0.0}, ["c", "d"], 1),
    ],
)
def test_margins_are_their_closed_form(tmp_path, settings, expected, dropped):
    found, counts = mined_at(tmp_path, CANDIDATES, {"pos": 0.8}, Choice(3, **settings))
    assert found == expected
    assert counts.margin == dropped
    assert counts.skipped == settings.get("first", 0)
    assert counts.fewer == (len(expected) < 3)


def test_the_lowest_positive_decides_and_a_negative_score_keeps_its_sign(tmp_path):
    assert mined_at(tmp_path / "a", CANDIDATES, {"p": 0.9, "q": 0.6}, Choice(3, margin=0.0))[0] == ["e", "f"]
    low = Choice(3, relative_margin=0.5)
    assert low.limit(np.array([-0.1])) == pytest.approx(-0.15)
    assert mined_at(tmp_path / "b", CANDIDATES, {"p": -0.1}, low)[0] == ["f"]


def test_planted_false_negatives_are_left_out_by_the_margin(tmp_path):
    """200 queries, each with a second answer as near as the positive (cosine 0.8 ± 0.01), and 5 of another matter."""
    rng = np.random.default_rng(0)
    vectors, rows, answers = {}, [], set()
    for i in range(200):
        axis = rng.standard_normal(64)
        axis /= np.linalg.norm(axis)

        def near(cosine: float, axis=axis) -> np.ndarray:
            other = rng.standard_normal(64)
            other -= (other @ axis) * axis
            return (cosine * axis + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other)).astype(np.float32)

        vectors[f"q:query {i}"] = axis.astype(np.float32)
        texts = {f"positive {i}": 0.8, f"answer {i}": 0.8 + 0.01 * rng.uniform(-1, 1)}
        texts |= {f"near {i} {n}": 0.55 for n in range(5)}
        vectors |= {text: near(cosine) for text, cosine in texts.items()}
        answers.add(f"answer {i}")
        rows.append(Record(f"query {i}", [f"positive {i}"]))
    corpus = Corpus()
    for text in vectors:
        if not text.startswith("q:"):
            corpus.add(text, text, {})
    for record in rows:
        corpus.add_row(record, choose=False)
    corpus.seal()
    ranker = dense_of(corpus, Planted(vectors, 64), tmp_path)
    plain = [Record(record.query, record.positives) for record in rows]
    Miner(corpus, Choice(4), [ranker]).add(plain)
    assert sum(not answers.isdisjoint(record.negatives) for record in plain) == 200
    miner = Miner(corpus, Choice(4, relative_margin=0.05), [ranker])
    miner.add(rows)
    assert sum(not answers.isdisjoint(record.negatives) for record in rows) == 0
    assert (miner.counts.margin, miner.counts.fewer) == (200, 0)
    assert all(text.startswith("near") for record in rows for text in record.negatives)


def test_both_takes_turns_and_what_one_skips_the_other_leaves_out(tmp_path):
    rows = [
        Record("oak leaf", ["p"]),
        *(Record(f"r{i}", [text]) for i, text in enumerate(["oak leaf x", "oak y y", "m", "n"])),
    ]
    cosines = {"oak leaf x": 0.1, "oak y y": 0.2, "m": 0.7, "n": 0.6, "p": 0.65}
    encoder = Planted(
        {t: at_cosine(c, axis=1 + i) for i, (t, c) in enumerate(cosines.items())} | {"q:oak leaf": at_cosine(1.0)}
    )
    corpus = corpus_of(rows)
    rankers = [Bm25(corpus), dense_of(corpus, encoder, tmp_path)]

    def chosen(choice):
        record = Record("oak leaf", ["p"])
        Miner(corpus, choice, rankers).add([record])
        return record.negatives

    assert chosen(Choice(4)) == ["oak leaf x", "m", "oak y y", "n"]
    assert chosen(Choice(4, first=1)) == ["oak y y", "n"]
    assert chosen(Choice(4, margin=0.0)) == ["oak leaf x", "oak y y", "n"]  # the model's scores judge both


# --- sampling ---


@given(st.integers(0, 80), st.integers(1, 12), st.text(max_size=5))
def test_a_sample_has_k_of_the_candidates_in_their_order(count, k, row):
    for sampling in ("top", "random", "spread"):
        taken = Choice(k, sampling=sampling).sample(iter(range(count)), row)
        assert taken == sorted(set(taken)) and len(taken) == min(k, count)
        assert set(taken) <= set(range(count))
    spread = Choice(k, sampling="spread").sample(range(count), row)
    gaps = np.diff([*spread, count])
    assert spread[:1] == [0][:count] and set(gaps) <= {count // k, count // k + 1, 1}, "from the best on, evenly"


def test_top_looks_at_no_further_candidate():
    candidates = iter(range(9))
    assert Choice(3).sample(candidates, "r") == [0, 1, 2] and next(candidates) == 3


def test_a_draw_is_by_the_row_and_every_candidate_as_likely():
    choice = Choice(2, sampling="random")
    draws = [choice.sample(range(8), f"row {i}") for i in range(4000)]
    assert draws == [choice.sample(range(8), f"row {i}") for i in range(4000)]
    hits = np.bincount(np.array(draws).ravel(), minlength=8)
    assert ((hits - 1000) ** 2 / 1000).sum() < 35, "chi squared of seven degrees: above 35 once in 90,000"
    assert len({tuple(draw) for draw in draws}) == 28, "every pair of eight"


def mined_with(capsys, folder: Path, rows: list[Record], *flags: str) -> dict[str, list[str]]:
    folder.mkdir()
    write_records(folder / "rows.jsonl", rows)
    code, _, said = run(capsys, "mine", folder / "rows.jsonl", "--output", folder / "out.jsonl", *flags)
    assert code == 0, said
    return {row["query"]: row["negatives"] for row in read_jsonl(folder / "out.jsonl")}


def test_the_window_and_the_sampling_of_the_command_whatever_the_order_of_rows(tmp_path, capsys):
    """All texts share one word with every query; equal scores rank by the text's number, which the order changes, so
    the corpus is a file of its own."""
    rows = [Record(f"oak q{i}", [f"oak p{i} {'x ' * i}"], id=f"r{i}") for i in range(12)]
    corpus = [{"id": f"c{i}", "text": f"oak {' '.join(f'w{i}n{k}' for k in range(1 + i))}"} for i in range(30)]
    write_jsonl(tmp_path / "corpus.jsonl", corpus)
    texts = [row["text"] for row in corpus]  # shorter texts rank higher
    base = ("--corpus", tmp_path / "corpus.jsonl", "--range", "10:22", "--k", "3")
    top = mined_with(capsys, tmp_path / "top", rows, *base)
    assert set(map(tuple, top.values())) == {tuple(texts[10:13])}
    spread = mined_with(capsys, tmp_path / "spread", rows, *base, "--sampling", "spread")
    assert set(map(tuple, spread.values())) == {(texts[10], texts[14], texts[18])}
    drawn = mined_with(capsys, tmp_path / "random", rows, *base, "--sampling", "random")
    assert all(len(set(few)) == 3 and set(few) <= set(texts[10:22]) for few in drawn.values())
    assert len(set(map(tuple, drawn.values()))) > 6, "rows draw apart"
    assert drawn == mined_with(capsys, tmp_path / "turned", rows[::-1], *base, "--sampling", "random")
    fewer = mined_with(capsys, tmp_path / "fewer", rows[3:7], *base, "--sampling", "random")
    assert fewer == {query: drawn[query] for query in fewer}
