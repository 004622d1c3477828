"""The answer cache: on disk before it counts, whole after a crash, one process at a time."""

import asyncio
import errno
import json
import os
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_prep.common.errors import BadInput, Failed
from data_prep.common.files import cache_folder
from data_prep.generation.answer import Answer
from data_prep.model_server.answer_cache import AnswerCache
from tests.launching import environment

REQUEST = {"model": "m", "system": "", "prompt": ["Ask: ", None], "temperature": None}


def fill(folder, answers: dict[str, str]) -> None:
    """Puts all of them at once, as tasks that answer at the same time do."""

    async def put(cache):
        await asyncio.gather(*(cache.put({text: Answer(answer)}) for text, answer in answers.items()))

    with AnswerCache(folder, REQUEST, Answer) as cache:
        asyncio.run(put(cache))


odd = st.text(st.characters())  # lone surrogates too: a model's JSON may hold them


@settings(deadline=None, max_examples=30)
@given(st.dictionaries(odd, odd, max_size=8))
@example({"half an emoji": "cut \ud83d"})
def test_what_was_put_is_there_after_reopening(tmp_path_factory, answers):
    folder = tmp_path_factory.mktemp("cache")
    fill(folder, answers)
    with AnswerCache(folder, REQUEST, Answer) as cache:
        assert len(cache) == len(answers)
        assert {text: cache.get(text).text for text in answers} == answers
        assert cache.get("another chunk" * 9) is None


def test_an_answer_keeps_all_that_is_known(tmp_path):
    answer = Answer("text", "refusal", "length", 12, None, "http://localhost:1/v1")
    with AnswerCache(tmp_path, REQUEST, Answer) as cache:
        asyncio.run(cache.put({"chunk": answer}))
        assert cache.get("chunk") == answer
    with AnswerCache(tmp_path, REQUEST, Answer) as cache:
        assert cache.get("chunk") == answer
        assert cache.urls == {"http://localhost:1/v1": 1}
    assert json.loads(cache.path.read_text().splitlines()[0]) == {"format": 1, **REQUEST}
    assert cache.path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("change", [{"model": "n"}, {"system": "s"}, {"prompt": ["Ask", None]}, {"temperature": 0.0}])
def test_another_request_has_other_answers(tmp_path, change):
    fill(tmp_path, {"chunk": "answer"})
    with AnswerCache(tmp_path, REQUEST | change, Answer) as cache:
        assert "chunk" not in cache


def test_a_torn_last_line_costs_that_answer_only(tmp_path, capsys):
    """Cut after every single byte of the last line: a crash may stop a write anywhere."""
    fill(tmp_path, {"one": "1", "two": "zwei"})
    (file,) = tmp_path.glob("*.jsonl")
    whole = file.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start + 1, len(whole)):
        file.write_bytes(whole[:end])
        with AnswerCache(tmp_path, REQUEST, Answer) as cache:
            assert ("one" in cache, "two" in cache) == (True, False)
            asyncio.run(cache.put({"three": Answer("3")}))
        assert "its last line was cut off" in capsys.readouterr().err
        with AnswerCache(tmp_path, REQUEST, Answer) as cache:
            assert (cache.get("one").text, cache.get("three").text) == ("1", "3")
        assert capsys.readouterr().err == ""


def test_a_file_torn_in_its_first_line_begins_anew(tmp_path):
    fill(tmp_path, {})
    (file,) = tmp_path.glob("*.jsonl")
    file.write_bytes(file.read_bytes()[:9])
    fill(tmp_path, {"one": "1"})
    with AnswerCache(tmp_path, REQUEST, Answer) as cache:
        assert cache.get("one").text == "1"


def test_damaged_lines_are_skipped_and_said(tmp_path, capsys):
    fill(tmp_path, {"one": "1", "two": "2"})
    (file,) = tmp_path.glob("*.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0], b"\0\0\0\n", b'{"chunk": "00"}\n', *lines[1:]]))
    with AnswerCache(tmp_path, REQUEST, Answer) as cache:
        assert (cache.get("one").text, cache.get("two").text) == ("1", "2")
    assert "2 damaged lines are skipped" in capsys.readouterr().err


def test_an_answer_counts_only_when_it_is_on_disk(tmp_path, monkeypatch):
    sync, seen = os.fsync, []
    with AnswerCache(tmp_path, REQUEST, Answer) as cache:

        def watched(handle):
            seen.append("one" in cache)
            sync(handle)

        monkeypatch.setattr(os, "fsync", watched)
        asyncio.run(cache.put({"one": Answer("1")}))
        assert seen == [False]
        assert "one" in cache


def test_answers_that_come_together_share_a_write(tmp_path, monkeypatch):
    calls, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append(1), sync(handle)))
    fill(tmp_path, {str(number): "x" for number in range(50)})
    assert len(calls) < 10
    with AnswerCache(tmp_path, REQUEST, Answer) as cache:
        assert len(cache) == 50


def test_a_full_disk_stops_everyone_and_leaves_no_half_line(tmp_path, monkeypatch):
    fill(tmp_path, {"one": "1"})
    (file,) = tmp_path.glob("*.jsonl")
    before = file.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    async def put(cache):
        return await asyncio.gather(*(cache.put({t: Answer(t)}) for t in "abc"), return_exceptions=True)

    with AnswerCache(tmp_path, REQUEST, Answer) as cache:
        monkeypatch.setattr(os, "fsync", full)
        errors = asyncio.run(put(cache))
        assert [error.errno for error in errors] == [errno.ENOSPC] * 3
        assert len(cache) == 1
    assert file.read_bytes() == before


def test_a_second_process_is_refused(tmp_path):
    code = "import sys; from data_prep.generation.answer import Answer\n"
    code += "from data_prep.model_server.answer_cache import AnswerCache; from pathlib import Path\n"
    code += f"cache = AnswerCache(Path(sys.argv[1]), {REQUEST!r}, Answer); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment(), **pipes) as other:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(Failed, match="another run asks the same of the same model"):
            AnswerCache(tmp_path, REQUEST, Answer)
        other.kill()  # and a killed one leaves no lock behind
        other.wait()
    fill(tmp_path, {"one": "1"})


def test_cache_folders_are_in_the_users_cache_unless_embedfleet_cache_is_set(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("EMBEDFLEET_CACHE", str(tmp_path / "own"))
    assert cache_folder("answers") == tmp_path / "own" / "answers"
    monkeypatch.delenv("EMBEDFLEET_CACHE")
    assert cache_folder("answers") == tmp_path / "embedfleet" / "answers"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert cache_folder("answers") == tmp_path / "me" / ".cache" / "embedfleet" / "answers"


@pytest.mark.parametrize("key", ["text", "refusal", "finish", "url", "tokens_in", "tokens_out"])
@pytest.mark.parametrize("value", [["a"], {"a": 1}, 0.5])
def test_a_line_with_a_value_of_another_type_is_damaged(tmp_path, capsys, key, value):
    fill(tmp_path, {"a": "one", "b": "two"})
    with AnswerCache(tmp_path, REQUEST, Answer) as cache:
        path = cache.path
    head, first, second = path.read_text().splitlines()
    path.write_text("\n".join([head, json.dumps(json.loads(first) | {key: value}), "[" * 3000, second]) + "\n")
    with AnswerCache(tmp_path, REQUEST, Answer) as cache:
        assert len(cache) == 1 and "2 damaged lines" in capsys.readouterr().err


def test_a_cache_folder_whose_name_is_too_long_is_named_with_its_variable(monkeypatch):
    monkeypatch.setenv("EMBEDFLEET_CACHE", "9" * 5000)
    with pytest.raises(BadInput, match="EMBEDFLEET_CACHE=999"):
        cache_folder("answers")
