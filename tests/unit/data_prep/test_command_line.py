"""The command line of data_prep: what follows a command, and flags that belong elsewhere."""

import pytest

from data_prep.__main__ import main


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("shard p.jsonl --output s --hard-k 2", "--hard-k: no such flag. It belongs to compose."),
        ("shard p.jsonl --output s --evalfraction=0", "no such flag. Did you mean '--eval-fraction'?"),
        ("inspect p.jsonl q.jsonl", "q.jsonl: unrecognized argument."),
        ("shard p.jsonl --ouput s", "--ouput: no such flag. Did you mean '--output'?"),
        ("shards p.jsonl --output s", "Did you mean 'shard'?\nAll flags: python -m data_prep --help"),
    ],
)
def test_an_unknown_flag_is_answered(argv, words, capsys):
    try:
        code = main(argv.split())
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and words in capsys.readouterr().err


def test_a_command_ends_with_the_one_that_follows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my pairs.jsonl").write_text('{"question": "w1", "answer": "w2"}\n')
    assert main(["compose", "my pairs.jsonl", "--output", "all of it.jsonl"]) == 0
    *_, last = capsys.readouterr().err.splitlines()
    assert last == "Next: python -m data_prep shard 'all of it.jsonl' --output shards"
    assert main(["shard", "all of it.jsonl", "--output", "shards", "--eval-fraction", "0"]) == 0
    *_, last = capsys.readouterr().err.splitlines()
    assert last == "Next: python -m launch init --model MODEL --data shards"
