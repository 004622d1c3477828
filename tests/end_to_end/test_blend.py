"""The example of `python -m trainer.blend --help`, word for word, on a run's own adapter: killed, and gone on with."""

import json
import re
import shlex

import numpy as np
import pytest

from tests import forked, tiny
from tests.unit.trainer.blending.conftest import write_set
from trainer.__main__ import main as train
from trainer.blend import main
from trainer.config.sections import ModelConfig
from trainer.inference.text_encoder import TextEncoder


@pytest.fixture
def here(tmp_path, tiny_bert, monkeypatch):
    """MODEL, shards with an eval split, a general set, and a LoRA run on the shards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "MODEL").symlink_to(tiny_bert)
    tiny.shards(tmp_path / "shards", 120, eval_fraction=0.5)
    write_set(tmp_path / "general", 40, 7)
    values = {
        "output_dir": "runs/mine",
        "model": {"path": "MODEL", "finetune": "lora", "query_max_len": 16, "query_prompt": "w1 "},
        "data": {"train": "shards", "eval": None},
        "optim": {"lr": 1e-2},
        "train": {"batch_size": 16, "epochs": 2},
    }
    (tmp_path / "run.json").write_text(json.dumps(values))
    assert train(["--config", "run.json"]) == 0
    return tmp_path


def example(capsys) -> list[str]:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out.partition("example:")[2]
    return shlex.split(text)[1:]


def test_the_example_killed_and_gone_on_with(here, capsys):
    capsys.readouterr()
    command = example(capsys)
    assert command[:2] == ["-m", "trainer.blend"]
    killed = forked.start(command, here)
    killed.wait_until_it_says("share 0.1: measuring on general", 900)  # 0, 1, and 0.1 on the shards are kept
    killed.kill()
    assert killed.wait() != 0 and not (here / "runs/mine/blended").exists()

    done = forked.run(*command, timeout=900, cwd=here)
    assert done.returncode == 0, done.both[-3000:]
    again = re.findall(r"share (\S+): measuring on (\S+)", done.stderr)
    more = [(f"0.{k}", data) for k in range(2, 10) for data in ("shards", "general")]
    assert again == [("0.1", "general"), *more][: len(again)] and len(again) % 2
    shares = 3 + len(again) // 2
    assert (shares == 11) != ("not measured, because a smaller one is refused" in done.stderr)
    assert re.search(r"sentence-transformers: cosine to .* at least (1\.0|0\.9999)", done.stderr)
    chosen = re.search(r"chosen: share (\S+)", done.stdout)[1].rstrip(",")
    result = json.loads((here / "runs/mine/blended/blend.json").read_text())
    assert f"{result['chosen']:g}" == chosen and len(result["shares"]) == shares
    assert result["read"]["query_prompt"] == "w1 " and result["read"]["query_max_len"] == 16

    from sentence_transformers import SentenceTransformer

    texts = ["w1 w2 w3", "w9 w10", "w200 w17 w5 w6"]
    theirs = SentenceTransformer("runs/mine/blended", device="cpu").encode_query(texts)
    ours = TextEncoder(ModelConfig(path="runs/mine/blended"), "cpu").queries(texts)
    assert np.allclose(theirs, ours, atol=1e-5)

    finished = forked.run(*command, timeout=900, cwd=here)
    assert finished.returncode == 0 and "is finished; nothing is measured again" in finished.stderr
    assert finished.stdout == done.stdout
