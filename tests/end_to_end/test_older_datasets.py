"""Shard folders are read alike by the previous major version of `datasets`, and folders that it wrote by us."""

import json
import os
import subprocess
import sys

import pytest

from data_prep.reading.formats import read_records
from data_prep.records import Record
from data_prep.sharding.build import shard
from tests.launching import install
from tests.unit.data_prep.helpers import write_records

OLDER = "4"
RECORDS = [
    Record("Was?\r\n\u2028", ["Ö \x00 😀", "e\u0301"], ["水泵"], None, [0.5, 1, -2], "s", "a", ["d", "D"], {"p": 1}),
    Record("graded", ["item"], [], 0.25, None, "t", "b", [], {"nested": {"list": [1, None, "x"]}}),
    Record('quoted "text"', ["\\", "'"], [], None, None, "s", "c"),
]  # fmt: skip
THERE = """
import importlib.metadata, json, sys
import datasets
assert importlib.metadata.version("datasets").split(".")[0] == sys.argv[1], datasets.__version__
rows = [dict(row) for row in datasets.load_from_disk(sys.argv[2])["train"]]
print(json.dumps(rows))
plain = [row | {"metadata": json.loads(row["metadata"])} for row in rows[:1]]
datasets.Dataset.from_list(rows).save_to_disk(sys.argv[3])
datasets.DatasetDict({"train": datasets.Dataset.from_list(plain)}).save_to_disk(sys.argv[3] + "-dict")
"""


@pytest.fixture(scope="module")
def older(tmp_path_factory) -> str:
    """A folder of the older package; all others stay those of this environment."""
    folder = tmp_path_factory.mktemp("older")
    install(folder, f"datasets=={OLDER}.*")
    return str(folder)


def test_shards_and_folders_are_the_same_in_both_major_versions(tmp_path, older):
    shard([write_records(tmp_path / "in.jsonl", RECORDS)], tmp_path / "shards", eval_fraction=0)
    call = [sys.executable, "-c", THERE, OLDER, str(tmp_path / "shards"), str(tmp_path / "theirs")]
    done = subprocess.run(call, env=os.environ | {"PYTHONPATH": older}, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [Record(**row | {"metadata": json.loads(row["metadata"])}) for row in rows] == RECORDS
    assert list(read_records(tmp_path / "theirs")) == RECORDS
    assert list(read_records(tmp_path / "theirs-dict" / "train")) == RECORDS[:1]
