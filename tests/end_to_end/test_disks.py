"""A disk that fills, or turns read-only, while a run trains on it: a clean end, and the checkpoint before is whole."""

import os

import pytest

from tests import tiny
from tests.disks import small_disk
from tests.end_to_end.runs import events, write_run
from tests.launching import ROOT, run
from trainer.run_dir.layout import damage, newest

# A loss that harms the disk in the second epoch, once.
HARM = """
from pathlib import Path
from tests.disks import make_read_only

DISK, steps = Path({disk!r}), 0

def fill(left=0):
    with open(DISK / "other", "wb", buffering=0) as file:
        size = 2**20
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
        file.truncate(file.tell() - left)

def harm(queries, positives, batch):
    global steps
    steps += 1
    if steps == 8:
        {harm}
    return (queries - positives).square().sum(dim=1).mean()
"""
HARMS = {
    "full": ("fill()", "o space left"),
    "full but for the log": ("fill(left=100_000)", "checkpoint-epoch-2: could not be written"),
    "read-only": ("make_read_only(DISK)", "Read-only file system"),
}


@pytest.mark.parametrize("kind", HARMS)
def test_the_run_ends_and_the_checkpoint_before_is_whole(tmp_path, tiny_bert, kind):
    harm, reason = HARMS[kind]
    shards = tiny.shards(tmp_path / "shards", 82)
    with small_disk(tmp_path / "disk", "64m") as disk:
        (tmp_path / "harm.py").write_text(HARM.format(disk=str(disk), harm=harm))
        out, run_file = disk / "out", write_run(tmp_path, tiny_bert, shards)
        argv = ["-m", "trainer", "--config", str(run_file), "--engine", "cpu", f"output_dir={out}"]
        done = run(*argv, "loss.name=harm:harm", PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
        assert done.returncode == 1, done.both[-3000:]
        assert reason in done.both and "Traceback" not in done.both, done.both[-3000:]
        assert newest(out) == (out / "checkpoint-epoch-1", [])
        assert damage(out / "checkpoint-epoch-1") is None and not (out / "final").exists()
        assert len(events(out)) >= 7  # whole lines
