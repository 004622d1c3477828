"""A good run file, which tests break."""

import json
import os
import shutil

import pytest


@pytest.fixture
def run(tmp_path, tiny_bert, tiny_shards):
    """A good run file's values, to be broken; .write(values) -> its path."""

    class Run:
        folder = tmp_path

        def __init__(self):
            self.values = {
                "output_dir": str(tmp_path / "out"),
                "model": {"path": str(tiny_bert)},
                "data": {"train": str(tiny_shards)},
                "train": {"batch_size": 8},
            }

        def write(self, text: str | None = None, name: str = "run.json") -> str:
            path = tmp_path / name
            path.write_text(json.dumps(self.values) if text is None else text)
            return str(path)

        def copy_model(self) -> "os.PathLike":
            shutil.copytree(tiny_bert, tmp_path / "model")
            self.values["model"]["path"] = str(tmp_path / "model")
            return tmp_path / "model"

        def copy_shards(self) -> "os.PathLike":
            shutil.copytree(tiny_shards, tmp_path / "shards")
            self.values["data"]["train"] = str(tmp_path / "shards")
            return tmp_path / "shards"

    return Run()
