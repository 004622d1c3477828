"""A model that brings its own code: refused until it is trusted, and then trained, exported, evaluated like others."""

import json
import shutil

import pytest

from data_prep.common.errors import BadInput
from launch.__main__ import main as plan
from tests import tiny
from tests.unit.trainer.exporting.test_export_folder import write_checkpoint
from trainer.__main__ import main as train
from trainer.config.sections import ModelConfig
from trainer.evaluate import main as evaluate
from trainer.export import main as export_main
from trainer.exporting import fresh_load, proof
from trainer.exporting.export_folder import export, verify
from trainer.inference.text_encoder import TextEncoder
from trainer.merge import main as merge
from trainer.model.build import load_embedder
from trainer.report import main as report

pytestmark = pytest.mark.usefixtures("forked_loads")

REFUSED = "set model.trust_remote_code=true (commands: --trust-remote-code) only if you have read it"
TRUSTED = "--trust-remote-code"
TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.own_code(tmp_path_factory.mktemp("models") / "own")


@pytest.fixture(scope="module")
def run(tmp_path_factory, model):
    """A run of two steps, with an evaluation set."""
    where = tmp_path_factory.mktemp("runs")
    values = {"output_dir": str(where / "run"), "model": {"path": str(model), "trust_remote_code": True}}
    values |= {"data": {"train": str(tiny.shards(where / "shards", 60, eval_fraction=0.2))}}
    (where / "run.json").write_text(json.dumps(values | {"train": {"batch_size": 8, "max_steps": 2}}))
    assert train(["--config", str(where / "run.json")]) == 0
    return where / "run"


@pytest.fixture
def here(monkeypatch):
    """Loads in this process: a fresh one does the same, and imports for seconds."""
    monkeypatch.setattr(proof, "load_elsewhere", fresh_load.embeddings)


def test_what_a_run_writes_carries_the_code_and_every_command_asks_for_trust(run, tmp_path, capsys):
    out = tmp_path / "out"
    for path in ("configuration_own.py", "modeling_own.py"):
        assert (run / "final" / path).is_file()
    assert export_main([str(run), "--output", str(out)]) == 2 and not out.exists()
    assert REFUSED in capsys.readouterr().err
    assert export_main([str(run), "--output", str(out), TRUSTED]) == 0, "in a fresh process"
    assert "trust_remote_code=True)" in (out / "README.md").read_text()
    assert export_main([str(out)]) == 2 and REFUSED in capsys.readouterr().err

    from sentence_transformers import SentenceTransformer

    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(out), device="cpu")
    theirs = SentenceTransformer(str(out), device="cpu", trust_remote_code=True).encode(TEXTS)
    ours = TextEncoder(ModelConfig(path=str(out), trust_remote_code=True), "cpu")
    assert abs(theirs - ours.passages(TEXTS)).max() < 1e-5


def test_a_model_of_its_own_code_is_evaluated_and_reported(run, tmp_path, capsys):
    asked = ["--model", str(run / "final"), "--data", str(run.parent / "shards"), "--device", "cpu"]
    assert evaluate(asked) == 2 and REFUSED in capsys.readouterr().err
    assert evaluate([*asked, TRUSTED]) == 0
    page = tmp_path / "report.html"
    assert report([str(run), "--output", str(page), "--device", "cpu"]) == 0
    assert REFUSED in capsys.readouterr().err and "Before and after" not in page.read_text()
    assert report([str(run), "--output", str(page), "--device", "cpu", TRUSTED]) == 0
    assert "Before and after" in page.read_text()


def test_own_code_is_planned_for(model, run, tmp_path, capsys):
    other = shutil.copytree(model, tmp_path / "other")
    with (other / "configuration_own.py").open("a") as code:
        code.write("# a class that transformers has not met in this process\n")
    asked = ["plan", "--config", str(run.parent / "run.json"), f"model.path={other}"]
    assert plan(asked) == 0, capsys.readouterr().err


def test_an_adapter_on_own_code_is_exported_and_merged(model, tmp_path, here, capsys):
    final = write_checkpoint(tmp_path / "run" / "final", model, finetune="lora", trust_remote_code=True)
    asked = ["--base_model_path", str(model), "--lora_adapter_path", str(final), "--output_path"]
    assert merge([*asked, str(tmp_path / "merged")]) == 2 and REFUSED in capsys.readouterr().err
    assert merge([*asked, str(tmp_path / "merged"), TRUSTED]) == 0
    assert (tmp_path / "merged" / "modeling_own.py").is_file()
    with pytest.raises(BadInput, match="brings its own code"):
        verify(final)
    for kind in (False, True):
        with pytest.raises(BadInput, match="brings its own code"):
            export(final, tmp_path / f"out {kind}", merge=kind)
        export(final, tmp_path / f"out {kind}", merge=kind, trust_remote_code=True)


def test_the_code_is_part_of_what_decides_an_embedding(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    one, other = (TextEncoder(ModelConfig(path=str(path), trust_remote_code=True)) for path in (model, copy))
    assert one.fingerprint == other.fingerprint
    with (copy / "modeling_own.py").open("a") as code:
        code.write("# changed\n")
    assert TextEncoder(other.config).fingerprint != one.fingerprint


def test_own_code_is_held_for_no_family_whatever_it_calls_itself(tmp_path, tiny_bert):
    """Texts are laid end to end for BERT's attention: in another one they would see each other."""
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    settings["auto_map"] = {"AutoModel": "modeling_own.Own"}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "modeling_own.py").write_text("from transformers import BertModel\n\n\nclass Own(BertModel): ...\n")
    theirs, _, spec, _ = load_embedder(ModelConfig(path=str(folder)))
    theirs.pack(device := next(theirs.parameters()).device)
    assert theirs.packing and not spec.own_code
    own, _, spec, _ = load_embedder(ModelConfig(path=str(folder), trust_remote_code=True))
    own.pack(device)
    assert type(own.backbone).__name__ == "Own" and own.packing is None and spec.own_code
    with pytest.raises(BadInput) as refused:
        load_embedder(ModelConfig(path=str(folder), trust_remote_code=True, freeze={"layers": 1}, bidirectional=True))
    assert [problem.split(":")[0] for problem in refused.value.problems] == ["model.freeze", "model.bidirectional"]
