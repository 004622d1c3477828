"""A report shows what the run's files say: in a real browser, wide and narrow, without a network."""

import json
import random
import re
import shutil
from contextlib import contextmanager
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from data_prep.common import svg
from tests import tiny
from tests.browser import chromium
from tests.unit.trainer.exporting.test_export_folder import write_checkpoint
from trainer.config.loading import parse_config
from trainer.config.sections import ModelConfig
from trainer.inference.text_encoder import TextEncoder
from trainer.query_side.adapter import Layer, QueryAdapter
from trainer.report import adapted, main
from trainer.reporting.facts import read_facts
from trainer.reporting.page import _halves

STEPS = 40
VALUES = ("loss", "lr", "grad_norm", "positive_similarity", "negative_similarity", "pairs_per_second")


def write_log(path: Path, steps: int) -> list[dict]:
    rng = random.Random(0)
    events = [{"event": "evaluation", "step": 0, "nDCG@10": 0.25, "MRR@10": 0.2, "recall@10": 0.5, "seconds": 1.5}]
    for step in range(1, steps + 1):
        made = {"event": "step", "step": step, "epoch": 1, "temperature": 0.05, "tokens": 900, "texts": 32}
        made |= {"loss": 4 / step + rng.random() / 9, "lr": 1e-4 * (1 - step / steps), "grad_norm": rng.random() * 7}
        made |= {"positive_similarity": rng.uniform(0.5, 0.9), "negative_similarity": rng.uniform(-0.2, 0.3)}
        made |= {"pairs_per_second": rng.uniform(9, 11), "tokens_per_second": 450.0, "memory_gib": 0.5}
        events.append(made | {"padding_share": 0.1, "truncated_texts": 1})
    events.append(events[0] | {"step": steps, "nDCG@10": 0.75, "MRR@10": 0.7, "recall@10": 0.9})
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return [event for event in events if event["event"] == "step"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_bert) -> Path:
    """A finished run with a retrieval set of its own; its texts hold what HTML must not take for its own."""
    where = tmp_path_factory.mktemp("report")
    data, folder = where / "set", where / "run"
    data.mkdir()
    rows = tiny.rows(30)
    corpus = [{"id": f"d{i}", "text": f"{row['positives'][0]} <b>&amp; {i}"} for i, row in enumerate(rows)]
    queries = [{"id": f"q{i}", "text": f"{row['query']} <script>alert({i})</script>"} for i, row in enumerate(rows)]
    for name, lines in (("corpus", corpus), ("queries", queries)):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (data / "qrels.tsv").write_text("".join(f"q{i}\td{i}\t1\n" for i in range(len(rows))))
    tuned = tiny.model(where / "tuned", dropout=0.0, layers=1)
    write_checkpoint(folder / "final", tuned)
    shards = tiny.shards(where / "shards", 20)
    values = {"output_dir": str(folder), "model": {"path": str(tiny_bert)}, "train": {"batch_size": 16}}
    config = parse_config(values | {"data": {"train": str(shards), "eval": str(data)}}, "test")
    record = {"config": config.model_dump(mode="json"), "data_fingerprint": "f00d", "git": None, "plan": {"version": 2}}
    record |= {"topology": {"processes": 2, "engine": "ddp", "device": "cpu"}, "versions": {"python": "3.11"}}
    (folder / "run.json").write_text(json.dumps(record | {"started": "2026-11-21T10:00:00+0000"}))
    write_log(folder / "logs.jsonl", STEPS)
    verdict = {"verdict": "not measured", "why": "<b>no set</b>", "final": {"model": "trained", "step": 40, "epoch": 1}}
    (folder / "verdict.json").write_text(json.dumps(verdict))
    return folder


def test_an_adapter_of_the_trained_model_maps_its_queries(run, tmp_path, capsys):
    encoder = TextEncoder(ModelConfig(path=str(run / "final")), "cpu")
    facts = {"dim": 32, **encoder.identity, "query_prompt": encoder.spec.rules.query_prompt}
    QueryAdapter([Layer(-np.eye(32), np.zeros(32))], facts).save(tmp_path)
    page = tmp_path / "report.html"
    assert main([str(run), "--output", str(page), "--device", "cpu", "--query-adapter", str(tmp_path)]) == 0
    plain, mapped = (read_facts(run, None, None, "cpu", adapted=one).comparison for one in (None, adapted(tmp_path)))
    assert plain.table["nDCG@10"]["base"] == mapped.table["nDCG@10"]["base"]
    row = mapped.table["nDCG@10"]
    assert row["tuned"] < plain.table["nDCG@10"]["tuned"] and f"<td>{row['tuned']:.4f}</td>" in page.read_text()
    assert f"After: queries pass the adapter {tmp_path}" in page.read_text()
    facts["model_sha256"] = "0"
    QueryAdapter([], facts).save(tmp_path)
    assert main([str(run), "--output", str(page), "--device", "cpu", "--query-adapter", str(tmp_path)]) == 2
    assert "whose files are not those of" in capsys.readouterr().err


def test_the_page_says_what_the_files_say(run, tmp_path, capsys):
    page = tmp_path / "report.html"
    assert main([str(run), "--output", str(page), "--device", "cpu"]) == 0
    text = page.read_text()
    facts = read_facts(run, None, None, "cpu")
    for name, row in facts.comparison.table.items():
        assert (
            f"<td>{name}</td><td>{row['base']:.4f}</td><td>{row['tuned']:.4f}</td><td>{row['difference']:+.4f}" in text
        )
    for shares in facts.comparison.shares.values():
        assert all(abs(sum(of) - 1) < 1e-9 for of in shares.values())
        assert len(facts.comparison.edges) == len(shares["other"]) + 1
    changed = facts.comparison.changed
    assert changed["gained"] and changed["lost"], "two random models differ in both directions"
    assert all(q.tuned > q.base for q in changed["gained"]) and all(q.tuned < q.base for q in changed["lost"])
    gains = [query.tuned - query.base for query in changed["gained"]]
    assert gains == sorted(gains, reverse=True)
    said = "Not measured: &lt;b&gt;no set&lt;/b&gt;; final/ is the model of epoch 1 (step 40)."
    assert f'<h2>Verdict</h2><p class="lead">{said}</p>' in text
    assert "<script" not in text and "&lt;script&gt;" in text, "texts are shown, not obeyed"
    assert "--engine ddp --processes 2" in text and "f00d" in text
    shown = unescape(re.search(r"<summary>run file</summary><pre>(.*?)</pre>", text, re.S)[1])
    assert parse_config(json.loads(shown), "report") == facts.config, "the run file that it shows is the run's"


@pytest.mark.parametrize(
    ("choosing", "reporting", "same", "said"),
    [
        (1200, 1100, False, " 1,200 of them chose the model, the other 1,100 report in the verdict."),
        (13, 13, True, " All 13 chose the model, and the same ones report in the verdict."),
        (0, 90, False, " None chose the model (watch.metric was train_loss); all 90 report in the verdict."),
    ],
)
def test_the_caption_says_how_many_queries_chose_and_how_many_report(choosing, reporting, same, said):
    facts = {"set": "s", "choosing_queries": choosing, "same_queries": same, "best": {"queries": reporting}}
    assert _halves("s", facts) == said
    assert _halves("another set, named by --data", facts) == _halves("s", {"verdict": "not measured"}) == ""


def test_what_is_not_there_is_said_on_the_page_and_on_the_screen(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copy / "final")
    with (copy / "logs.jsonl").open("a") as log:
        log.write('{"event": "st')
    assert main([str(copy)]) == 0
    said = capsys.readouterr().err
    assert "left out: before and after: " in said
    assert f"left out: line {STEPS + 3} of logs.jsonl is no whole event" in said
    text = (copy / "report.html").read_text()
    assert "What is not shown" in text and "Before and after" not in text and "Loss" in text


def test_what_is_no_run_or_was_asked_for_in_vain_is_refused(run, tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no run (it has no run.json)" in capsys.readouterr().err
    assert main([str(run / "final")]) == 2
    assert f"did you mean {run}?" in capsys.readouterr().err
    assert main([str(run), "--output", str(tmp_path / "a.html"), "--data", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main([str(run), "--output", str(tmp_path / "a.pdf")]) == 2
    assert "must end in .html" in capsys.readouterr().err
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "logs.jsonl").unlink()
    assert main([str(copy)]) == 2
    assert "logs.jsonl cannot be read" in capsys.readouterr().err


def test_a_long_log_is_thinned_to_values_that_were_measured():
    rng = np.random.default_rng(0)
    points = [(step, float(value)) for step, value in enumerate(rng.normal(size=20_000))]
    kept = svg._thin(points)
    assert len(kept) <= svg.MOST_POINTS + 2 and set(kept) <= set(points) and kept == sorted(kept)
    assert {min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])} <= set(kept)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.3, 0.3), (-5e-9, 3e-8), (0, 0), (99.2, 1044), (-0.1, 0.9)])
def test_ticks_are_round_and_hold_the_values(low, high):
    marks = svg._ticks(low, high)
    assert marks[0] <= low and marks[-1] >= high and 2 <= len(marks) <= 7
    assert all(len(f"{mark:g}") <= 8 for mark in marks)


@contextmanager
def open_page(path: Path, width: int):
    """(page, what the console said, what was asked for) in a headless browser; skips where there is none."""
    with chromium() as browser:
        if isinstance(browser, str):
            pytest.skip(browser)
        page = browser.new_page(viewport={"width": width, "height": 900})
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        yield page, said, asked


PLOTTED = """svg => {
  const text = kind => [...svg.querySelectorAll("text." + kind)].map(t => [
    t.textContent, +t.getAttribute(kind === "x" ? "x" : "y")]);
  return {x: text("x"), y: text("y"), lines: [...svg.querySelectorAll("polyline")].map(
    line => [...line.points].map(point => [point.x, point.y]))}
}"""


def values_of(plot: dict) -> list[list[tuple[float, float]]]:
    """Values that a reader reads off the axes of a plot: positions of the labels against those of the line's points."""

    def scale(labels: list, shift: float):
        places = np.array([place for _, place in labels]) - shift
        named = np.array([float(text.replace(",", "")) for text, _ in labels])
        slope = (named[-1] - named[0]) / (places[-1] - places[0])
        return lambda place: named[0] + slope * (place - places[0])

    x, y = scale(plot["x"], 0), scale(plot["y"], 4)  # the middle of a label stands 4 units above its baseline
    return [[(x(one), y(other)) for one, other in line] for line in plot["lines"]]


def test_in_a_browser_the_page_is_quiet_narrow_and_its_lines_are_the_log(run, tmp_path):
    page_file = tmp_path / "report.html"
    assert main([str(run), "--output", str(page_file), "--device", "cpu"]) == 0
    steps = [e for line in (run / "logs.jsonl").read_text().splitlines() if (e := json.loads(line))["event"] == "step"]
    with open_page(page_file, 390) as (page, said, asked):
        assert not said, said
        assert asked == [page_file.as_uri()], asked
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        wide = "e => e.getBoundingClientRect().right > innerWidth + 0.5 && getComputedStyle(e).display !== 'none'"
        assert not page.evaluate(f"[...document.querySelectorAll('main *')].filter({wide}).map(e => e.outerHTML)")
        lines_of = "e => { let r = document.createRange(); r.selectNodeContents(e); return r.getClientRects().length }"
        names = page.query_selector_all(".facts td:first-child")
        assert names and {name.evaluate(lines_of) for name in names} == {1}, "a name stands on one line"
        plots = {
            plot.get_attribute("aria-label"): values_of(plot.evaluate(PLOTTED))
            for plot in page.query_selector_all("svg")
            if plot.query_selector("polyline")
        }
        page.set_viewport_size({"width": 1280, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    lines = [*plots["Loss"], *plots["Learning rate"], *plots["Gradient norm"]]
    lines += [*plots["Similarity in training"], *plots["Pairs per second"]]
    for key, line in zip(("loss", "lr", "grad_norm", "positive_similarity", "negative_similarity", VALUES[-1]), lines):
        logged = [event[key] for event in steps]
        assert [round(step) for step, _ in line] == [event["step"] for event in steps]
        spread = max(logged) - min(logged)
        assert np.allclose([value for _, value in line], logged, atol=spread / 2000), key
    assert [round(value, 2) for _, value in plots["metrics"][0]] == [0.25, 0.75]
