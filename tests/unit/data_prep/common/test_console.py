"""Output into a terminal or a pipe whose encoding lacks letters: escapes, no traceback."""

import contextlib
import importlib
import io
import json
from pathlib import Path

import pytest

FOREIGN = "größer 日本 Ответ…"


@pytest.fixture(params=["ascii", "latin-1", "cp1251", "utf-8"])
def encoding(request) -> str:
    return request.param


def shown(encoding: str, module: str, *argv: str | Path) -> str:
    """Returns the output of a command on an stdout of this encoding."""
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with contextlib.redirect_stdout(stdout), contextlib.suppress(SystemExit):
        assert importlib.import_module(module).main([str(part) for part in argv]) == 0
    stdout.flush()
    return stdout.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("argv", [["data_prep.__main__", "logs"], ["launch.__main__", "slurm"], ["trainer.__main__"]])
def test_help_is_shown_in_any_encoding(argv, encoding):
    assert "usage: python -m" in shown(encoding, *argv, "--help")


def test_a_report_is_shown_and_its_json_is_read_in_any_encoding(tmp_path, encoding):
    path = tmp_path / "größe.jsonl"
    path.write_text(json.dumps({"question": FOREIGN, "answer": FOREIGN}) + "\n", encoding="utf-8")
    text = shown(encoding, "data_prep.__main__", "inspect", path)
    assert "1  rows whose query is one of their positives" in text
    assert ("größe" if encoding in ("latin-1", "utf-8") else r"\xf6\xdfe") in text
    report = json.loads(shown(encoding, "data_prep.__main__", "inspect", path, "--json"))
    assert "größe" in json.dumps(report, ensure_ascii=False)


def test_a_search_is_shown_in_any_encoding(tmp_path, tiny_bert, encoding):
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"id": "ä", "text": FOREIGN}) + "\n", encoding="utf-8")
    (tmp_path / "queries.jsonl").write_text('{"id": "q", "text": "w1"}\n', encoding="utf-8")
    (tmp_path / "qrels.tsv").write_text("q\tä\t1\n", encoding="utf-8")
    text = shown(encoding, "trainer.search", FOREIGN, "--model", tiny_bert, "--data", tmp_path, "--device", "cpu")
    assert "cosine 1.000" in text
