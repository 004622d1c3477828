"""The end of a run that cannot blend; that it does is tests/end_to_end/test_run_blend.py."""

import json
from types import SimpleNamespace

import pytest
import torch

from data_prep.common.errors import BadInput
from tests.unit.trainer.blending.conftest import tuned_copy
from trainer.blending.of_run import Tuned, blend_run
from trainer.config.sections import ModelConfig
from trainer.distributed.collectives import World


def test_what_lies_not_between_is_refused_in_the_words_of_a_run(tiny_bert, tmp_path):
    folder = tuned_copy(tiny_bert, tmp_path / "best")
    for name, changed in (
        ("config.json", {"layer_norm_eps": 0.1}),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}),
    ):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    runtime = SimpleNamespace(world=World(), dtype=None, device=torch.device("cpu"))
    tuned = Tuned(folder, 3, ModelConfig(path=str(tiny_bert)), None)
    with pytest.raises(BadInput) as caught:
        blend_run(runtime, tuned, [], "nDCG@10", tmp_path / "final", lambda line: None)
    pooling, shape = caught.value.problems
    assert "pooling: BASE has 'mean', TUNED has 'cls'; BASE is the model before training" in pooling
    assert "layer_norm_eps: BASE has" in shape
    for problem in (pooling, shape):
        assert problem.startswith("watch.blend: ") and "--pooling" not in problem
        assert problem.endswith("; `--resume watch.blend=off` writes the best model unblended")
