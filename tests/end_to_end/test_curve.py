"""The example of `python -m trainer.curve --help`, word for word: killed with its run, and gone on with."""

import json
import re
import shlex
from itertools import pairwise

import pytest

from tests import forked, tiny
from trainer.curve import main

RUN_FILE = """
output_dir: runs/unused
model: {path: MODEL, query_max_len: 16}
data: {train: shards}
optim: {lr: 1e-3}
train: {batch_size: 8, micro_batch_tokens: 2000}
"""


@pytest.fixture
def here(tmp_path, tiny_bert, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "MODEL").symlink_to(tiny_bert)
    tiny.shards(tmp_path / "shards", 240, eval_fraction=0.5)
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    return tmp_path


def example(capsys) -> list[str]:
    with pytest.raises(SystemExit):
        main(["--help"])
    return shlex.split(capsys.readouterr().out.partition("example:")[2])[1:]


def test_the_example_killed_and_gone_on_with(here, capsys):
    capsys.readouterr()
    command = example(capsys)
    assert command[:2] == ["-m", "trainer.curve"]
    killed = forked.start(command, here)
    killed.wait_until_it_says("run 3 of 8", 900)
    killed.kill()  # the run of that moment ends as well, or is waited for
    assert killed.wait() != 0 and not (here / "runs/curve/curve.json").exists()

    done = forked.run(*command, timeout=900, cwd=here)
    assert done.returncode == 0, done.both[-3000:]
    assert done.stderr.count(": finished before") in (2, 3)  # the third run may have ended by itself
    result = json.loads((here / "runs/curve/curve.json").read_text())
    assert [size["fraction"] for size in result["measured"]] == [0.1, 0.25, 0.5, 1.0]
    sizes = [size["pairs"] for size in result["measured"]]
    assert all(small[seed] < large[seed] for small, large in pairwise(sizes) for seed in range(2))
    [forecast] = result["forecasts"]
    assert forecast["more_pairs"] == sizes[-1][0] and forecast["price"] == pytest.approx(0.002 * sizes[-1][0])
    assert re.search(r"^the next \d+ pairs: .* expected \(95 % interval .*\), for 0\.\d\d$", done.stdout, re.M)
    assert done.stderr.splitlines()[-1] == "Next: python -m trainer.report runs/curve/fraction-1-seed-1"
    assert ("stop: " in done.stdout) == forecast["stop"]
    assert (here / "runs/curve/curve.html").read_text().count("<circle") == 8
    assert len([*(here / "runs/curve").glob("fraction-*/final/model.safetensors")]) == 8

    again = forked.run(*command, timeout=900, cwd=here)
    assert again.returncode == 0 and again.stdout == done.stdout and again.stderr.count(": finished before") == 8


def test_it_is_refused_on_the_ranks_of_a_launcher(here, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["--config", "run.yaml", "--output", "out", "--next", "0", "--price-per-pair", "-1"]) == 2
    text = capsys.readouterr().err
    assert "error: 3 problems" in text and "start it once and plainly, with --engine and --processes" in text
    assert not (here / "out").exists()
