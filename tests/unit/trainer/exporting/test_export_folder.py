"""An export embeds as the trainer did, or is refused: from whole models and adapters, damaged in every way we know."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from data_prep.common.errors import BadInput, Failed
from tests import tiny
from trainer.config.loading import parse_config
from trainer.config.sections import ModelConfig, OptimConfig
from trainer.distributed.collectives import World
from trainer.distributed.device import DTYPES
from trainer.engine.torch_engine import TorchEngine
from trainer.export import main
from trainer.exporting import fresh_load, proof
from trainer.exporting.export_folder import export
from trainer.exporting.proof import prove
from trainer.inference.probe import read_probe
from trainer.model.build import load_embedder
from trainer.model_folder.files import weights_sha256
from trainer.model_folder.spec import read_spec
from trainer.reporting.model_card import model_card
from trainer.run_dir import checkpoint_writer as checkpoint
from trainer.run_dir.layout import MARKER, TrainState, damage
from trainer.run_dir.log import RunLog
from trainer.train.checkpointing import model_writer
from trainer.train.early_stopping import Watch
from trainer.train.job import LoadedModel, Progress

pytestmark = pytest.mark.usefixtures("forked_loads")

PROMPTS = {"query_prompt": "w1 w2 ", "passage_prompt": "w3 ", "pool_prompt": False}
KINDS = {
    "full": {},
    "lora": {"finetune": "lora"},
    "qlora4": {"finetune": "qlora", "quantization_bits": 4},
    "qlora8": {"finetune": "qlora", "quantization_bits": 8},
}


def write_checkpoint(
    folder: Path, model: Path, state: TrainState | None = None, precision="fp32", step=0, **settings
) -> Path:
    """A model folder as a run writes it, by the run's own code, after `step` or with its state for resume."""
    import torch

    values = {"output_dir": str(folder.parent), "model": {"path": str(model), **PROMPTS, **settings}}
    values |= {"data": {"train": "shards"}, "train": {"batch_size": 16, "precision": precision}}
    config = parse_config(values, "test")
    embedder, tokenizer, spec, untrained = load_embedder(config.model)
    _, reader, _, _ = load_embedder(config.model)
    if embedder.adapter:
        embedder.adapter.base_sha256 = weights_sha256(model)
    engine = TorchEngine(embedder, OptimConfig(), World(), torch.device("cpu"), DTYPES[precision])
    progress = Progress(TrainState(step, 0, step, 0, {}), Watch(config.watch), stopped_early=False)
    loaded = LoadedModel(engine, spec, tokenizer, reader, untrained)
    prepare = model_writer(loaded, config, RunLog(folder.parent, active=False), progress)
    checkpoint.write(folder, engine.weights(), {}, state, prepare(state))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_bert) -> dict[str, Path]:
    """final/ of a run of every kind. Their adapters are of some size: new ones add nothing."""
    where = tmp_path_factory.mktemp("runs")
    start = {"lora": {"start": str(tiny.adapter(where / "start", tiny_bert))}}
    return {
        kind: write_checkpoint(where / kind / "final", tiny_bert, **settings, **(start if settings else {}))
        for kind, settings in KINDS.items()
    }


@pytest.fixture
def here(monkeypatch):
    """Loads in this process: a fresh one does the same, and imports for seconds."""
    tiny.without_bf16_instructions()
    monkeypatch.setattr(proof, "load_elsewhere", fresh_load.embeddings)


def seal(folder: Path) -> None:
    """The marker again, as if the trainer had written what is there."""
    (folder / MARKER).unlink()
    checkpoint._seal(folder)


@pytest.mark.parametrize(("there", "named"), [("shards/eval", "shards"), ("shards/train", "SET"), ("", "SET")])
def test_the_next_command_names_the_runs_evaluation_set_if_it_is_here(
    tmp_path, folders, here, capsys, monkeypatch, there, named
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    assert main([str(folders["full"]), "--output", "exported"]) == 0
    said = capsys.readouterr().err
    assert said.endswith(f"Next: python -m trainer.evaluate --model exported --data {named}\n")


def test_a_whole_model_is_exported_and_loads_elsewhere(tmp_path, folders, capsys):
    out = tmp_path / "exported"
    assert main([str(folders["full"]), "--output", str(out)]) == 0
    said = capsys.readouterr()
    assert "sentence-transformers: cosine to the trainer's own embeddings at least 1.0" in said.err, said.err
    assert "a fresh process embeds as the trainer did" in said.out
    assert damage(out) is None, "sealed, so it can be checked and exported again"
    assert not (out / "training_config.json").exists(), "holds this machine's paths"
    card = (out / "README.md").read_text()
    assert "library_name: sentence-transformers" in card and "`w1 w2 `" in card
    assert "| pooling | mean, without the tokens of the prompt |" in card
    assert "| least version | transformers 4.57, sentence-transformers 5.0 |" in card
    assert str(tmp_path) not in card
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    theirs = SentenceTransformer(str(out), device="cpu")
    assert theirs.prompts == {"query": "w1 w2 ", "document": "w3 "} and theirs.max_seq_length == 32
    assert AutoModel.from_pretrained(out).config.hidden_size == 32


@pytest.mark.parametrize("kind", ["lora", "qlora4", "qlora8"])
@pytest.mark.parametrize("merge", [False, True])
def test_adapters_are_exported_as_they_are_and_merged(tmp_path, folders, here, kind, merge, capsys):
    probe = export(folders[kind], tmp_path / "out", merge=merge)
    assert probe.limit == (0.9999 if kind == "lora" else 0.999)
    assert (tmp_path / "out" / "adapter_model.safetensors").exists() != merge
    assert ("it loads where" in capsys.readouterr().err) != merge
    assert np.array_equal(probe.queries, read_probe(folders[kind]).queries), "the trainer's own, not made anew"


def test_a_merged_folder_keeps_the_verdict_and_the_shares_of_a_blend(tmp_path, folders, here):
    folder = tmp_path / "run" / "final"
    shutil.copytree(folders["lora"], folder)
    verdict = {"verdict": "not measured", "why": "no set", "final": {"model": "trained", "step": 4, "epoch": 1}}
    facts = {"verdict.json": verdict, "blend.json": {"chosen": 0.5}}
    for name, value in facts.items():
        (folder / name).write_text(json.dumps(value))
    seal(folder)
    export(folder, tmp_path / "out", merge=True)
    assert {name: json.loads((tmp_path / "out" / name).read_text()) for name in facts} == facts


def test_a_base_that_was_moved_is_named(tmp_path, tiny_bert, here, capsys):
    base, moved = tmp_path / "base", tmp_path / "elsewhere"
    shutil.copytree(tiny_bert, base)
    folder = write_checkpoint(tmp_path / "run" / "final", base, finetune="lora")
    base.rename(moved)
    assert main([str(folder), "--output", str(tmp_path / "out")]) == 2
    assert f"is an adapter of {base}, which is no model folder here" in capsys.readouterr().err
    assert main([str(folder), "--output", str(tmp_path / "out"), "--base", str(moved)]) == 0
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(moved)
    other = tiny.model(tmp_path / "other", layers=1)
    assert main([str(folder), "--output", str(tmp_path / "out2"), "--merge", "--base", str(other)]) == 2
    assert "was trained on another base" in capsys.readouterr().err
    assert not (tmp_path / "out2").exists()


def test_a_base_that_differs_by_less_than_any_proof_sees_is_refused(tmp_path, tiny_bert, here, capsys):
    folder = write_checkpoint(tmp_path / "run" / "final", tiny_bert, finetune="lora")
    nearly = shutil.copytree(tiny_bert, tmp_path / "nearly")
    weights = load_file(nearly / "model.safetensors")
    weights["encoder.layer.1.output.dense.bias"][0] += 1e-6
    save_file(weights, nearly / "model.safetensors", metadata={"format": "pt"})
    assert main([str(folder), "--output", str(tmp_path / "out"), "--base", str(nearly)]) == 2
    assert "was trained on another base" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def _pooling_removed(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").unlink()


def _other_pooling(folder: Path) -> None:
    values = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(values))


def _tensor_zeroed(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.attention.self.value.weight"].zero_()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _tensor_changed(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.attention.output.dense.weight"].mul_(-1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _shard_deleted(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    for file, held in parts.items():
        save_file({name: weights[name] for name in held}, folder / file, metadata={"format": "pt"})
    places = {name: file for file, held in parts.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    prove(folder, read_probe(folder), load=fresh_load.embeddings)  # in two shards it is whole
    (folder / "model-00002-of-00002.safetensors").unlink()


def _prompts_swapped(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    values = json.loads(path.read_text())
    values["prompts"] = {"query": values["prompts"]["document"], "document": values["prompts"]["query"]}
    path.write_text(json.dumps(values))


def _prompt_pooled(folder: Path) -> None:
    path = folder / "1_Pooling" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"include_prompt": True}))


def _not_normalised(folder: Path) -> None:
    path = folder / "modules.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:2]))


def _shorter(folder: Path) -> None:
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16}))


DAMAGES = {
    _pooling_removed: "1_Pooling/config.json: is missing",
    _other_pooling: "has cosine",
    _tensor_zeroed: "encoder.layer.1.attention.self.value.weight: is all zeros, and was not",
    _tensor_changed: "has cosine",
    _shard_deleted: "model-00002-of-00002.safetensors: the shard is missing",
    _prompts_swapped: "has cosine",
    _prompt_pooled: "has cosine",
    _not_normalised: "normalisation?",
    _shorter: "has cosine",
}


@pytest.mark.parametrize("damaged", DAMAGES)
def test_what_is_damaged_on_purpose_is_refused(tmp_path, folders, here, damaged, capsys):
    folder = shutil.copytree(folders["full"], tmp_path / "run" / "final")
    damaged(folder)
    assert main([str(folder), "--output", str(tmp_path / "out")]) == 2
    assert "is missing" in (said := capsys.readouterr().err) or "is not what was written" in said
    with pytest.raises(Failed, match="does not embed as the trainer did") as found:  # whoever made the damage whole
        prove(folder, read_probe(folder))
    assert DAMAGES[damaged] in str(found.value)
    seal(folder)
    assert main([str(folder), "--output", str(tmp_path / "out")]) in (1, 2)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.writing-*"))
    assert main([str(folder)]) == 1, "checked only"


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_embeddings_that_are_longer_or_shorter_are_refused(folders, factor):
    """No cosine sees it."""
    probe = read_probe(folders["full"])
    scaled = {"elsewhere": {"query": factor * probe.queries, "document": factor * probe.passages}}
    with pytest.raises(Failed, match="10.0% longer or shorter"):
        prove(folders["full"], probe, load=lambda *_: scaled)


def test_damage_done_while_it_is_written_is_refused(tmp_path, folders, here, monkeypatch):
    from trainer.exporting import export_folder as module

    monkeypatch.setattr(module, "model_card", lambda *args: _prompts_swapped(next(tmp_path.glob("*.writing-*"))) or "")
    with pytest.raises(Failed, match="has cosine"):
        export(folders["full"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_fresh_process_that_cannot_load_is_a_refusal(tmp_path, folders):
    folder = shutil.copytree(folders["full"], tmp_path / "broken")
    probe = read_probe(folder)
    (folder / "probe.json").write_text("{}")  # seen before the fresh process imports for seconds
    with pytest.raises(Failed, match="a fresh process cannot load it: .*no record of embeddings"):
        prove(folder, probe)


def write_log(run: Path) -> None:
    """Writes a log of two steps, the metrics better after the first."""
    events = [{"event": "evaluation", "step": n, "nDCG@10": (0.5, 0.6, 0.1)[n], "MAP": 0.4} for n in (0, 1, 2)]
    events += [{"event": "step", "step": step} for step in (1, 2)]
    (run / "logs.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (run / "run.json").write_text(json.dumps({"data_fingerprint": "f00d"}))


def card(folder: Path) -> str:
    return model_card(folder, read_spec(ModelConfig(path=str(folder)), folder), False, False)


@pytest.fixture
def finished(tmp_path, tiny_bert) -> Path:
    """A run whose best model is not its last."""
    for name, step in (("best", 1), ("final", 2)):
        write_checkpoint(tmp_path / "run" / name, tiny_bert, step=step)
    write_log(tmp_path / "run")
    return tmp_path / "run"


def test_the_card_of_a_folder_has_the_metrics_of_its_own_step(finished, tmp_path, here):
    best, final = card(finished / "best"), card(finished / "final")
    assert "| optimizer steps | 1 |" in best and "| nDCG@10 | 0.5000 | 0.6000 |" in best
    assert "| optimizer steps | 2 |" in final and "| nDCG@10 | 0.5000 | 0.1000 |" in final
    export(finished / "best", tmp_path / "out")
    assert "| optimizer steps | 1 |" in (tmp_path / "out" / "README.md").read_text()
    assert "| optimizer steps | 1 |" in card(tmp_path / "out"), "an export of an export knows as well"


def test_a_checkpoint_beside_an_average_does_not_take_the_averages_metrics(finished, tiny_bert):
    folder = write_checkpoint(finished / "checkpoint-step-1", tiny_bert, TrainState(1, 0, 1, 0, {}))
    assert "| nDCG@10 | 0.5000 | 0.6000 |" in card(folder)
    for place in (folder, finished / "best"):
        path = place / "training_config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"optim": config["optim"] | {"ema": 0.9}}))
    assert "0.6000" not in card(folder) and "Not known: metrics of these weights" in card(folder)
    assert "| nDCG@10 | 0.5000 | 0.6000 |" in card(finished / "best")


def test_folders_that_recorded_no_step_say_what_can_be_known(finished, tiny_bert):
    write_checkpoint(finished / "checkpoint-step-1", tiny_bert, TrainState(1, 0, 1, 0, {}))
    for probe in finished.glob("*/probe.json"):  # as it was once
        probe.write_text(
            json.dumps({name: value for name, value in json.loads(probe.read_text()).items() if name != "step"})
        )
    assert "| nDCG@10 | 0.5000 | 0.1000 |" in card(finished / "final")
    assert "| nDCG@10 | 0.5000 | 0.6000 |" in card(finished / "checkpoint-step-1")
    best = card(finished / "best")
    assert "Not known: which step this model is of was not recorded." in best and "optimizer steps" not in best


def test_a_log_that_is_gone_or_half_written_leaves_a_card(finished):
    log = finished / "logs.jsonl"
    with log.open("ab") as file:
        file.write('{"event": "warning", "text": "…'.encode()[:-1])  # within a character
    assert "| nDCG@10 | 0.5000 | 0.6000 |" in card(finished / "best")
    log.write_bytes(log.read_bytes()[:40])
    assert "Not known: line 1 of logs.jsonl is no whole event." in card(finished / "best")
    log.unlink()
    assert "Not known: logs.jsonl cannot be read (No such file or directory)." in card(finished / "best")


def test_a_run_gives_its_final_model_or_its_newest_whole_checkpoint(tmp_path, tiny_bert, here, capsys):
    run = tmp_path / "run"
    for step in (1, 2):
        write_checkpoint(run / f"checkpoint-step-{step}", tiny_bert, TrainState(step, 0, step, 0, {}))
    write_log(run)
    (run / "checkpoint-step-2" / "config.json").unlink()
    export(run, tmp_path / "out")
    assert "passed over" in (said := capsys.readouterr().err) and "exporting " in said and "checkpoint-step-1" in said
    assert not (tmp_path / "out" / "state").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| nDCG@10 | 0.5000 | 0.6000 |" in card and "f00d" in card
    shutil.rmtree(run / "checkpoint-step-1")
    with pytest.raises(BadInput, match="checkpoint-step-2: config.json is missing"):
        export(run, tmp_path / "out2")


def test_what_does_not_go_together_is_refused_before_any_work(tmp_path, folders, tiny_bert, capsys):
    out = ["--output", str(tmp_path / "out")]
    assert main([str(folders["full"]), *out, "--merge", "--base", str(tiny_bert)]) == 2
    assert capsys.readouterr().err.count("is a whole model and has no adapter") == 2
    assert main([str(folders["lora"]), *out, "--onnx"]) == 2
    assert "add --merge" in capsys.readouterr().err
    assert main([str(folders["full"]), "--merge", "--onnx"]) == 2
    assert capsys.readouterr().err.count("needs --output") == 2
    assert main([str(tiny_bert), *out]) == 2
    assert "neither a run (no run.json) nor a whole checkpoint" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere"), *out]) == 2
    folder = shutil.copytree(folders["full"], tmp_path / "old")
    (folder / "probe.json").unlink()
    seal(folder)
    assert main([str(folder), *out]) == 2
    assert "records no embeddings of its training" in capsys.readouterr().err


def test_bf16_runs_have_the_wider_limit(tmp_path, tiny_bert, here):
    folder = write_checkpoint(tmp_path / "run" / "final", tiny_bert, precision="bf16")
    assert export(folder, tmp_path / "out").limit == 0.999


def test_onnx_gives_the_same_embeddings_and_a_wrong_one_is_refused(tmp_path, folders, here, capsys):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    export(folders["lora"], tmp_path / "out", merge=True, onnx=True)
    assert "onnxruntime: cosine to the trainer's own embeddings at least" in capsys.readouterr().err
    import onnx

    path = tmp_path / "out" / "onnx" / "model.onnx"
    graph = onnx.load(path)
    largest = max(graph.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    largest.raw_data = bytes(reversed(largest.raw_data[:64])) + largest.raw_data[64:-4096] + bytes(4096)
    onnx.save(graph, path)
    with pytest.raises(Failed, match="onnxruntime"):
        prove(tmp_path / "out", read_probe(tmp_path / "out"))
