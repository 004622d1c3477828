"""Both engines have what callers may ask of an Engine, and small types of what ranks exchange."""

import inspect

import pytest
import torch

from trainer.config.sections import LossConfig, ModelConfig, OptimConfig
from trainer.distributed.collectives import World
from trainer.distributed.step_row import StepRow, Wishes
from trainer.engine.protocol import Engine
from trainer.engine.torch_engine import TorchEngine
from trainer.engine.zero_engine import ZeroEngine
from trainer.loss.exchange import NO_ROW, DocumentKeys, DocumentScores
from trainer.model.build import load_embedder

METHODS = [name for name, member in vars(Engine).items() if inspect.isfunction(member) and not name.startswith("_")]


@pytest.mark.parametrize("kind", [TorchEngine, ZeroEngine])
def test_an_engine_has_every_method_with_the_same_arguments(kind):
    assert {"embed", "backward", "accumulate", "apply", "weights", "moments", "load_moments"} <= set(METHODS)
    for name in METHODS:
        assert name in vars(kind), name
        assert [*inspect.signature(vars(kind)[name]).parameters] == [
            *inspect.signature(getattr(Engine, name)).parameters
        ]


def test_the_engine_of_one_process_has_every_attribute(tiny_bert):
    embedder, *_ = load_embedder(ModelConfig(path=str(tiny_bert)))
    engine = TorchEngine(embedder, OptimConfig(), World(), torch.device("cpu"), None)
    assert [name for name in Engine.__annotations__ if not hasattr(engine, name)] == []


def test_facts_about_documents_come_back_as_they_were():
    keys = DocumentKeys(*torch.arange(12).reshape(4, 3).unbind(dim=0))
    assert all(torch.equal(a, b) for a, b in zip(keys, DocumentKeys.unpack(keys.pack())))
    nan = float("nan")
    scores = DocumentScores(
        torch.tensor([2**53 + 1, 7, NO_ROW]),  # no float64 is 2^53 + 1
        torch.tensor([0.1, -0.0, nan], dtype=torch.float64),
        torch.tensor([nan, 1e300, 3.0], dtype=torch.float64),
    )
    table = scores.pack()
    assert table.shape == (3, len(DocumentScores._fields)) and table.dtype == torch.int64
    back = DocumentScores.unpack(table)
    assert all(torch.equal(a.nan_to_num(5.0), b.nan_to_num(5.0)) for a, b in zip(scores, back))


def test_one_rank_is_enough_for_a_wish():
    ranks = [StepRow(4, 5, 1, 1, stop=0, save=1, evaluate=0), StepRow(4, 4, 2, 0, stop=15, save=0, evaluate=1)]
    assert Wishes.of_all(ranks) == Wishes(stop=15, save=1, evaluate=1)


def test_the_old_name_of_the_cosine_loss_is_read_as_the_new_one():
    assert LossConfig(name="trainer.pair_losses:cosine_of_pairs") == LossConfig(
        name="trainer.loss.functions:cosine_of_pairs"
    )
