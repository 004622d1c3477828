"""A guide in a run: its own tokenizer, no gradient, no place in checkpoints, the same bytes after an interruption."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from data_prep.common.errors import BadInput
from tests import tiny
from trainer.config.loading import load_config, parse_config
from trainer.config.sections import ModelConfig
from trainer.distributed.collectives import World
from trainer.engine.start import Runtime
from trainer.inference.guide import Guide
from trainer.train import fit
from trainer.train.train import train

TEXTS = [" ".join(tiny.WORDS[i : i + 1 + i % 9]) for i in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A decoder whose tokens are byte pairs, where the model's are words."""
    return tiny.model(tmp_path_factory.mktemp("guide") / "qwen2", "qwen2", "last")


@pytest.fixture
def config(tmp_path, tiny_bert, tiny_shards, folder):
    def make(out="out", guide=None, **loss):
        values = {"output_dir": str(tmp_path / out), "model": {"path": str(tiny_bert)}}
        values |= {"data": {"train": str(tiny_shards)}, "optim": {"lr": 1e-3}, "checkpoint": {"every_steps": 1}}
        values |= {"train": {"batch_size": 16, "max_steps": 4, "micro_batch_tokens": 300}}
        return parse_config(values | {"loss": {"guide": {"model": str(folder)} | (guide or {}), **loss}}, "test")

    return make


def alone() -> Runtime:
    return Runtime(None, World(), torch.device("cpu"), "cpu", None)


def test_its_embeddings_are_those_of_sentence_transformers_in_any_chunks(folder, tiny_bert, monkeypatch):
    guide = Guide(str(folder), ModelConfig(path=str(tiny_bert)), alone())
    tokens = guide.tokens(TEXTS[:15], TEXTS[15:])
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, convert_to_tensor=True)
    assert torch.allclose(guide(tokens), torch.nn.functional.normalize(expected, dim=1), atol=1e-6)
    monkeypatch.setattr("trainer.inference.guide.CHUNK_TOKENS", {"cpu": 40})
    assert torch.allclose(guide(tokens), expected, atol=1e-6)
    assert guide([]).shape == (0, 32) and not guide(tokens).requires_grad
    assert not any(p.requires_grad or p.grad is not None for p in guide.engine.embedder.parameters())


def test_it_reads_with_the_lengths_of_the_model_in_training(folder, tiny_bert):
    short = ModelConfig(path=str(tiny_bert), query_max_len=4, passage_max_len=6)
    lengths = [len(ids) for ids in Guide(str(folder), short, alone()).tokens(TEXTS[8:9], TEXTS[8:9])]
    assert lengths == [4, 6]


def final_bytes(config) -> bytes:
    return (Path(config.output_dir) / "final" / "model.safetensors").read_bytes()


def test_a_run_masks_by_it_says_its_cost_and_resumes_to_the_same_bytes(config, folder, tmp_path, monkeypatch, capsys):
    train(config("whole"), "run.json")
    said = capsys.readouterr().err
    assert f"loss.guide {folder}: embeds every text of a batch once more, without gradient: " in said
    assert "more computation in a step" in said and "guide" in said
    log = [json.loads(line) for line in (tmp_path / "whole" / "logs.jsonl").read_text().splitlines()]
    assert sum(event["masked_negatives"] for event in log if event["event"] == "step") > 50
    train(config("other", {"margin": -0.05}), "run.json")
    assert final_bytes(config("whole")) != final_bytes(config("other")), "the guide matters"

    real = fit.log_step

    def cut_after_two(job, step, *rest):
        if step == 2:
            raise KeyboardInterrupt
        real(job, step, *rest)

    monkeypatch.setattr(fit, "log_step", cut_after_two)
    with pytest.raises(KeyboardInterrupt):
        train(config("cut"), "run.json")
    monkeypatch.undo()
    train(config("cut"), "run.json", resume=True)
    assert final_bytes(config("cut")) == final_bytes(config("whole"))
    names = set(load_file(tmp_path / "cut" / "final" / "model.safetensors"))
    assert names <= {f"{name}" for name in load_file(Path(config().model.path) / "model.safetensors")}
    recorded = json.loads((tmp_path / "cut" / "run.json").read_text())
    assert [*recorded["plan"]["guides"]] == [str(folder)]

    edited = {str(folder): "0" * 64}
    recorded["plan"]["guides"] = edited
    (tmp_path / "cut" / "run.json").write_text(json.dumps(recorded))
    shutil.rmtree(tmp_path / "cut" / "final")  # not finished
    with pytest.raises(BadInput, match="is no longer the model that the run began with"):
        train(config("cut"), "run.json", resume=True)


def test_a_guide_of_a_source_is_stated_there_and_by_overrides(config, folder, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("output_dir: o\nmodel: {path: m}\ndata: {train: t}\n")
    loaded = load_config(path, [f"loss.guide.model={folder}", "loss.guide.margin=-0.1"])
    assert (loaded.loss.guide.model, loaded.loss.guide.margin) == (str(folder), -0.1)
    with pytest.raises(BadInput, match="loss.guide"):
        load_config(path, ["loss.guide.margin=0.1"])


@pytest.mark.parametrize(
    "loss, message",
    [
        ({"guide": {"model": "/nowhere/model"}}, "loss.guide.model: /nowhere/model is not a folder"),
        ({"name": "cosent"}, "loss.guide: masks negatives of infonce, which is no term of this loss"),
    ],
)
def test_a_guide_that_cannot_be_used_is_refused_before_anything_is_loaded(config, loss, message):
    with pytest.raises(BadInput) as raised:
        train(config(**loss), "run.json")
    assert any(message in problem for problem in raised.value.problems), raised.value.problems
