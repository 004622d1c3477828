"""A quantised base after the release of its engine; of other models: tests/multiprocess/released.py."""

import pytest
import torch

from tests import tiny
from tests.multiprocess.released import held
from trainer.config.sections import ModelConfig, OptimConfig
from trainer.distributed.collectives import World
from trainer.engine.torch_engine import TorchEngine
from trainer.model.build import load_embedder


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("passes", [0, 1])
def test_a_quantised_base_is_given_back(tiny_bert, bits, passes):
    """Before and after the first pass, which moves the weights of 8 bits."""
    pytest.importorskip("bitsandbytes")
    tiny.without_bf16_instructions()
    outside = held()
    config = ModelConfig(path=str(tiny_bert), finetune="qlora", quantization_bits=bits, lora={"r": 2})
    engine = TorchEngine(load_embedder(config)[0], OptimConfig(), World(), torch.device("cpu"), None)
    for _ in range(passes):
        engine.backward(engine.embed(torch.tensor([5, 6, 7, 8, 9]), [3, 2], 0).sum())
    training = held() - outside
    assert training > 60_000
    engine.release()
    assert held() - outside < 0.02 * training
