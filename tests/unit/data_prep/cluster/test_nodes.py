"""Proofs of a node, and refusals before anything starts. No Ray is needed."""

import shutil
import sys

import pytest

from data_prep.cluster import nodes
from data_prep.common.errors import BadInput
from tests.unit.data_prep.helpers import run, write_jsonl

ROW = {"query": "q", "positive": "p"}


def test_a_node_like_the_driver_differs_in_nothing_and_leaves_its_mark(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [ROW])
    job = nodes.new_job([path], tmp_path / "out" / "shards")
    assert nodes.differences(job, "n1") == []
    assert nodes.unseen(job, ["n1", nodes.DRIVER]) == []


def test_every_difference_of_a_node_is_named(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [ROW])
    job = nodes.new_job([path, tmp_path / "b.jsonl"], tmp_path / "shards")
    job = job._replace(versions=job.versions | {"numpy": "0.1", "embedfleet": "another"})
    write_jsonl(path, [ROW | {"query": "r"}])
    (job.probe / nodes.DRIVER).unlink()
    job.probe.rmdir()
    with pytest.raises(BadInput) as error:
        nodes.check_once(job, "n1", "node1 (10.0.0.1)")
    assert len(error.value.problems) == 4
    listed = str(error.value)
    assert "node node1 (10.0.0.1): embedfleet " in listed and ", but another here" in listed
    assert "node node1 (10.0.0.1): numpy " in listed and ", but 0.1 here" in listed
    assert f"{path} is missing or another file" in listed and "b.jsonl" not in listed
    assert f"{tmp_path} is not the folder of this machine" in listed


def test_a_path_that_the_user_did_not_give_comes_with_the_variable_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDFLEET_CACHE", str(tmp_path / "cache"))
    given, folder = write_jsonl(tmp_path / "a.jsonl", [ROW]), tmp_path / "cache" / "uploads" / "0123"
    folder.mkdir(parents=True)
    job = nodes.new_job([given, texts := write_jsonl(tmp_path / "cache" / "texts", [ROW])], folder / "shards")
    monkeypatch.setenv("EMBEDFLEET_CACHE", str(tmp_path / "of-the-node"))
    given.unlink()
    texts.unlink()
    shutil.rmtree(job.probe)
    mend = "for this command set EMBEDFLEET_CACHE, in which it lies, to a folder that every node mounts"
    assert nodes.differences(job, "n1") == [
        f"{given} is missing or another file; give paths that every node sees",
        f"{texts} is missing or another file; {mend}",
        f"{folder} is not the folder of this machine; {mend}",
    ]


def test_a_driver_without_a_home_has_no_cache_and_works(tmp_path, monkeypatch):
    monkeypatch.delenv("EMBEDFLEET_CACHE")
    monkeypatch.setattr("data_prep.common.files.Path.home", lambda: (_ for _ in ()).throw(RuntimeError()))
    job = nodes.new_job([], tmp_path / "shards")
    assert job.cache is None and nodes.differences(job, "n1") == []


def test_a_file_of_the_same_size_is_another_one(tmp_path):
    for name in "xy":
        (tmp_path / name).mkdir()
    one, other = (write_jsonl(tmp_path / name / "a.jsonl", [ROW | {"query": name}]) for name in "xy")
    assert nodes.identity(one) != nodes.identity(other)
    assert nodes.identity(one.parent) != nodes.identity(other.parent)
    assert nodes.identity(tmp_path / "none") == f"No such file or directory ({tmp_path}/none)"


@pytest.mark.parametrize("command", ["shard", "augment", "crawl"])
def test_what_is_wrong_with_on_is_one_line_and_code_2(command, tmp_path, monkeypatch, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", [ROW])
    inputs = ["--source", tmp_path / "a.html"] if command == "crawl" else [path]
    (tmp_path / "a.html").write_text("<p>text")
    argv = [command, *inputs, "--output", tmp_path / ("s.jsonl" if command != "shard" else "s")]
    monkeypatch.setitem(sys.modules, "ray", None)
    for flags, line in (
        (["--on", "dask"], "error: --on dask: must be ray, or ray://HOST:PORT of a Ray client server"),
        (
            ["--on", "ray", "--workers", "2"],
            "error: --workers: counts processes of one machine; leave it out with --on",
        ),
        (["--on", "ray"], "error: --on ray: needs the package ray"),
    ):
        code, _, err = run(capsys, *argv, *flags)
        assert code == 2 and err.splitlines()[-1].startswith(line), err
    assert "pip install 'embedfleet[ray]'" in err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.html", "a.jsonl"]
