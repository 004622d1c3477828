"""Rows of many files: found wherever they lie, while a bounded number of files is open."""

import random
from pathlib import Path

import pytest

from data_prep.sharding.build import shard
from data_prep.shards import folder
from tests.unit.data_prep.helpers import documents, write_records

MAPS = Path("/proc/self/maps")


@pytest.mark.skipif(not MAPS.exists(), reason="the system does not list the maps of a process")
def test_of_many_files_a_bounded_number_is_open(tmp_path, monkeypatch):
    path = write_records(tmp_path / "a.jsonl", documents(40))
    manifest = shard([path], tmp_path / "s", eval_fraction=0, num_shards=12)
    files = [tmp_path / "s" / entry["path"] for entry in manifest["files"] if entry["path"].endswith(".arrow")]
    everything = list(folder.Rows(files))
    monkeypatch.setattr(folder, "OPEN_FILES", 3)
    rows = folder.Rows(files)
    numbers = random.Random(0).choices(range(len(everything)), k=200)
    assert rows.take(numbers) == [everything[number] for number in numbers]
    assert list(rows) == everything
    assert [query for (query,) in rows.values("query")] == [record.query for record in everything]
    assert rows.count("positives") == len(everything)
    assert MAPS.read_text().count(str(tmp_path)) == 3
