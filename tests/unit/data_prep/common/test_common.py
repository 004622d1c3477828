"""The small parts that every package shares."""

import os
from pathlib import Path

import numpy as np
import pytest

from data_prep.common.files import check_output_file, named_when_whole
from data_prep.common.parser import Parser, near_flag, stray_flags
from data_prep.common.workers import batches, free_memory
from data_prep.remote.location import location
from data_prep.texts.splitmix import GOLDEN_GAMMA, splitmix


def test_batches_hold_every_item_in_order():
    assert list(batches(iter(range(7)), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batches([], 3)) == []


@pytest.mark.parametrize("version", [1, 2])
def test_the_cache_of_files_counts_as_free_memory_of_a_control_group(tmp_path, version):
    """A full container whose memory is mostly the cache of what it wrote and read."""
    folder, prefix = (tmp_path, "") if version == 2 else (tmp_path / "memory", "total_")
    folder.mkdir(exist_ok=True)
    limit, used = ("max", "current") if version == 2 else ("limit_in_bytes", "usage_in_bytes")
    (folder / f"memory.{limit}").write_text("1000000\n")
    (folder / f"memory.{used}").write_text("990000\n")
    assert free_memory(tmp_path) == 10_000
    stat = f"{prefix}inactive_file 300000\n{prefix}active_file 400000\n{prefix}inactive_anon 200000\n"
    (folder / "memory.stat").write_text(f"{'inactive_file 7' if version == 1 else 'shmem 7'}\n{stat}")
    assert free_memory(tmp_path) == 710_000
    (folder / f"memory.{limit}").write_text("max\n" if version == 2 else f"{1 << 62}\n")
    assert free_memory(tmp_path) > 10 << 20  # of the machine


def test_splitmix64_gives_the_published_sequence_and_keeps_its_input():
    """The first outputs of the reference implementation (prng.di.unimi.it/splitmix64.c) from state 0."""
    states = np.arange(3, dtype=np.uint64) * GOLDEN_GAMMA
    before = states.copy()
    assert [hex(value) for value in splitmix(states).tolist()] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]
    assert (states == before).all()


def test_every_problem_of_an_output_file_names_its_flag(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "page.jsonl").mkdir()
    outputs = [tmp_path / "page.jsonl", tmp_path / "file" / "page.txt"]
    inputs = [tmp_path / "page.jsonl", Path(tmp_path, "page.rejected.jsonl")]
    lines = [line for output in outputs for line in check_output_file(output, inputs, suffix=".html", flag="--html")]
    assert len(lines) == 6 and all(line.startswith("--html ") for line in lines)


def test_an_output_that_would_replace_what_is_read_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("corpus.jsonl", "mined.jsonl", "a.rejected.jsonl"):
        (folder / name).write_text("")
    (tmp_path / "other").symlink_to(folder)
    (folder / "link.jsonl").symlink_to(folder / "corpus.jsonl")
    inputs = [folder, location("s3://bucket/rows.jsonl"), None]
    for place in (folder, tmp_path / "other"):
        for name in ("corpus.jsonl", "link.jsonl"):
            (problem,) = check_output_file(place / name, inputs)
            assert (
                problem == f"--output {place / name}: would replace a file of the input {folder}; choose another name"
            )
        for name in ("new.jsonl", "mined.jsonl", "a.jsonl"):  # no reader of a folder reads these
            assert not check_output_file(place / name, inputs)
    # a second mount, or a disk that takes C for c
    real = os.path.samefile
    (folder / "Corpus.jsonl").write_text("")
    monkeypatch.setattr(os.path, "samefile", lambda *paths: real(*(str(path).replace("/C", "/c") for path in paths)))
    (problem,) = check_output_file(folder / "Corpus.jsonl", [folder / "corpus.jsonl"])
    assert problem.endswith("Corpus.jsonl: is also an input; choose another name")


def test_of_two_runs_of_one_task_only_a_whole_file_gets_the_name(tmp_path):
    path = tmp_path / "part.npz"
    with named_when_whole(path, tmp_path) as first, named_when_whole(path, tmp_path) as second:
        first.write_text("whole")
        second.write_text("whole")
        assert first != second and not path.exists()
    with pytest.raises(OSError), named_when_whole(path, tmp_path) as part:
        part.write_text("half")
        raise OSError
    assert path.read_text() == "whole"


FLAGS = ("-h", "--help", "--dry-run", "--json", "--seeds")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--dryrun", "--dry-run"),
        ("dryrun", "--dry-run"),
        ("dry_run", "--dry-run"),
        ("--jsn=out.json", "--json"),
        ("seeds", "--seeds"),
        ("--processes", None),
        ("3", None),
        ("run.json", None),  # a value, not a flag
    ],
)
def test_a_flag_without_dashes_or_misspelt(word, meant):
    assert near_flag(word, FLAGS) == (f" Did you mean {meant!r}?" if meant else "")


def test_a_word_among_overrides_may_lack_the_dashes_of_a_flag():
    assert stray_flags(["optim.lr=1", "seeds", "3", "json=4"], FLAGS) == [
        "seeds: no key=value. Did you mean '--seeds'?"
    ]


def test_a_command_answers_with_the_flag_that_may_be_meant(capsys):
    parser = Parser("python -m one", "Does it.", "python -m one --dry-run")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("overrides", nargs="*")
    assert parser.parse_args(["--dry-run", "a=b"]).overrides == ["a=b"]
    assert parser.parse_args(["--dry"]).dry_run, "abbreviated, as argparse allows"
    assert parser.parse_args(["a=b", "--", "dryrun"]).overrides == ["a=b", "dryrun"], "of another command"
    for argv, said in {
        ("--dryrun", "--strange"): "2 problems\n  - --dryrun: no such flag. Did you mean '--dry-run'?\n"
        "  - --strange: no such flag.",
        ("dryrun",): "dryrun: no key=value. Did you mean '--dry-run'?",
        ("a=b", "--dry-run", "dryrun", "--strange", "3"): "2 problems\n  - dryrun: unrecognized argument. Did you mean "
        "'--dry-run'?\n  - --strange: no such flag.",
    }.items():
        assert refused(parser, argv, capsys) == f"error: {said}\nAll flags: python -m one --help\n"


def test_a_command_answers_with_the_choice_that_may_be_meant_and_with_its_unknown_flags(capsys):
    parser = Parser("python -m many", "Does it.", "python -m many one --output o")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("one", summary="Does one.", examples="python -m many one --output o")
    one.add_argument("--output", required=True)
    one.add_argument("--way", choices=("short", "long"))
    assert one.format_help().endswith("\n\nexample:\n  python -m many one --output o\n")
    shown = refused(parser, ["on", "--ouput", "o"], capsys)
    assert shown.startswith("error: argument command: invalid choice: 'on' (choose from ")
    assert shown.endswith(" Did you mean 'one'?\nAll flags: python -m many --help\n")
    assert refused(parser, ["one", "--ouput", "o"], capsys) == (
        "error: 2 problems\n  - the following arguments are required: --output\n"
        "  - --ouput: no such flag. Did you mean '--output'?\nAll flags: python -m many one --help\n"
    )
    shown = refused(parser, ["one", "--out", "o", "--way", "shrt", "--strange"], capsys)
    assert " Did you mean 'short'?\n  - --strange: no such flag.\nAll flags: python -m many one --help\n" in shown


def refused(parser, argv, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(argv)
    assert stop.value.code == 2
    return capsys.readouterr().err
