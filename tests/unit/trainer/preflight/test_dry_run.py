"""Dry runs: they show the first batch as it is read, and the flaws of an evaluation set."""

import json

from data_prep.__main__ import main as prep_main
from tests import tiny
from trainer.__main__ import main as train_main


def test_a_dry_run_tells_the_flaws_of_an_evaluation_set(run, capsys, tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"id": "a", "text": "one"}\n{"id": "b", "text": ""}\n')
    (tmp_path / "queries.jsonl").write_text('{"id": "q", "text": "what"}\n')
    (tmp_path / "qrels.tsv").write_text("q\ta\t1\nlost\ta\t1\n")
    run.values["data"]["eval"] = str(tmp_path)
    assert train_main(["--config", run.write(), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "text of 'b' is empty; 1 documents without text are left out" in shown
    assert "qrels.tsv:2: query 'lost' is not in queries.jsonl" in shown


def test_dry_run_shows_a_decoded_batch_with_prompts_and_masks(run, capsys, tmp_path):
    rows = [{"query": f"w{i}", "positives": ["w100 w101" if i < 2 else f"w{i + 50} w99"]} for i in range(8)]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert prep_main(["shard", str(source), "--output", str(tmp_path / "s"), "--eval-fraction", "0"]) == 0
    run.values["data"]["train"] = str(tmp_path / "s")
    run.values["model"] |= {"query_prompt": f"{tiny.WORDS[7]} ", "passage_max_len": 4}
    assert train_main(["--config", run.write(), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "2 (query, document) pairs masked" in shown
    assert "[CLS] w7 w" in shown
    assert "plan: 1 steps (1 epoch(s) of 1), global batch 8, shortest batch of 8" in shown
