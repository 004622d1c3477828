"""A merged model embeds as the unmerged one did; the wrong base, and what is no adapter, is refused."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_prep.common.errors import Failed
from tests import tiny
from trainer.config.sections import ModelConfig
from trainer.exporting.merging import merge
from trainer.inference.probe import LENGTHS, TEXTS, probe_texts
from trainer.merge import main
from trainer.model.build import load_embedder
from trainer.model.save import save_embedder
from trainer.model.tokenizer import load_tokenizer
from trainer.model_folder.files import weights_sha256

pytestmark = pytest.mark.usefixtures("forked_loads")

KINDS = {
    "lora": {"finetune": "lora"},
    "dora": {"finetune": "lora"},
    "qlora 4": {"finetune": "qlora", "quantization_bits": 4},
    "qlora 8": {"finetune": "qlora", "quantization_bits": 8},
}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, tiny_bert):
    """Folders as runs write them, by kind."""
    tiny.without_bf16_instructions()
    where, made = tmp_path_factory.mktemp("adapters"), {}
    for kind, settings in KINDS.items():
        start = tiny.adapter(where / f"start {kind}", tiny_bert, dora=kind == "dora")
        config = ModelConfig(path=str(tiny_bert), **settings, lora={"start": str(start)})
        embedder, tokenizer, spec, _ = load_embedder(config)
        embedder.adapter.base_sha256 = weights_sha256(tiny_bert)
        made[kind] = where / kind
        made[kind].mkdir()
        save_embedder(made[kind], dict(embedder.stored()), embedder, tokenizer, spec)
    return made


def theirs(folder) -> torch.Tensor:
    from sentence_transformers import SentenceTransformer

    return torch.tensor(SentenceTransformer(str(folder), device="cpu").encode(["w1 w2 w3", "w4", "w5 w6 w7 w8"]))


@pytest.mark.parametrize("kind", KINDS)
def test_merged_embeddings_are_the_unmerged_ones(tmp_path, adapters, tiny_bert, kind, capsys):
    weights = str(adapters[kind] / "adapter_model.safetensors")
    out = str(tmp_path / "merged")
    assert main(["--base_model_path", str(tiny_bert), "--lora_adapter_path", weights, "--output_path", out]) == 0
    shown = re.search(r"by at most (\S+) in cosine", capsys.readouterr().out)
    assert float(shown[1]) < 1e-4
    assert not list((tmp_path / "merged").glob("adapter*"))
    limit = 1e-4 if kind in ("lora", "dora") else 1e-3  # elsewhere int8 layers round their inputs as well
    apart = 1 - torch.nn.functional.cosine_similarity(theirs(tmp_path / "merged"), theirs(adapters[kind]))
    assert apart.max() < limit
    names = load_file(tiny_bert / "model.safetensors").keys()
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == names, "the unused pooler, too"


@pytest.mark.parametrize("family", [family for family in tiny.FAMILIES if family != "bert"])
def test_the_models_of_every_family(tmp_path, family):
    base, trained = tiny.model(tmp_path / "base", family, tiny.FAMILIES[family]), tmp_path / "trained"
    embedder, tokenizer, spec, _ = load_embedder(ModelConfig(path=str(base), finetune="lora", lora={"r": 3}))
    tiny.fill_adapter(embedder)
    embedder.adapter.base_sha256 = weights_sha256(base)
    trained.mkdir()
    save_embedder(trained, dict(embedder.stored()), embedder, tokenizer, spec)
    assert merge(str(base), trained, tmp_path / "merged") < 1e-4
    apart = 1 - torch.nn.functional.cosine_similarity(theirs(tmp_path / "merged"), theirs(trained))
    assert apart.max() < 1e-4
    assert (theirs(trained) - theirs(base)).abs().max() > 1e-3, "the adapter does something"


def test_a_quantised_base_can_be_merged_as_it_is_stored_and_the_difference_is_told(tmp_path, adapters, tiny_bert):
    exact = merge(str(tiny_bert), adapters["qlora 4"], tmp_path / "dequantized")
    stored = merge(str(tiny_bert), adapters["qlora 4"], tmp_path / "full", onto="full")
    assert exact < 1e-6 < 1e-5 < stored
    base = load_file(tiny_bert / "model.safetensors")
    name = "encoder.layer.0.attention.self.query.weight"
    start = load_file(adapters["qlora 4"] / "adapter_model.safetensors")
    place = "base_model.model.encoder.layer.0.attention.self.query"
    added = 6 / 2 * start[f"{place}.lora_B.weight"] @ start[f"{place}.lora_A.weight"]  # alpha / sqrt(r)
    assert torch.allclose(load_file(tmp_path / "full" / "model.safetensors")[name], base[name] + added, atol=1e-6)
    rounded = load_file(tmp_path / "dequantized" / "model.safetensors")[name] - added
    blocks = rounded.view(-1, 64).sort(dim=1).values
    # adding and taking away rounds in the last bit, differently on every CPU; two levels are a thousand times further
    levels = 1 + (blocks.diff(dim=1) > 1e-6).sum(dim=1)
    assert levels.max() <= 16, "NF4: 16 values in each block of 64"
    whole = base[name].view(-1, 64).sort(dim=1).values
    assert (1 + (whole.diff(dim=1) > 1e-6).sum(dim=1)).min() > 32, "unlike the weights themselves"


def test_bfloat16_is_written_as_such_and_its_difference_is_told(tmp_path, adapters, tiny_bert):
    difference = merge(str(tiny_bert), adapters["lora"], tmp_path / "merged", "bfloat16")
    assert 1e-7 < difference < 1e-3
    assert {t.dtype for t in load_file(tmp_path / "merged" / "model.safetensors").values()} == {torch.bfloat16}


def test_another_base_is_refused(tmp_path, adapters, tiny_bert, capsys):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(tiny_bert, other)
    weights = load_file(other / "model.safetensors")
    weights["encoder.layer.1.output.dense.bias"][0] += 1e-3
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    command = ["--lora_adapter_path", str(adapters["lora"]), "--output_path", str(tmp_path / "merged")]
    assert main(["--base_model_path", str(other), *command]) == 2
    assert "was trained on another base" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_a_merged_model_that_gives_no_numbers_is_not_written(tmp_path, tiny_bert, monkeypatch):
    given = iter([torch.ones(3, 4), torch.full((3, 4), float("nan"))])  # of the unmerged model, of the merged one
    monkeypatch.setattr("trainer.exporting.merging._embeddings", lambda *_: next(given))
    adapter = tiny.adapter(tmp_path / "adapter", tiny_bert)
    with pytest.raises(Failed, match="merged and unmerged embeddings differ"):
        merge(str(tiny_bert), adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_peft_alone_is_merged_with_the_bases_own_pooling_and_a_line(tmp_path, tiny_bert, capsys):
    adapter = tiny.adapter(tmp_path / "adapter", tiny_bert)
    assert merge(str(tiny_bert), adapter, tmp_path / "merged") < 1e-6
    assert "records no hash of its base" in capsys.readouterr().err
    assert load_embedder(ModelConfig(path=str(tmp_path / "merged")))[2].pooling == "mean"


def test_what_is_no_adapter_or_no_new_folder_is_refused(tmp_path, adapters, tiny_bert, capsys):
    base = ["--base_model_path", str(tiny_bert)]
    assert main([*base, "--lora_adapter_path", str(tiny_bert), "--output_path", str(tmp_path / "merged")]) == 2
    assert "it has no adapter_config.json" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    assert main([*base, "--lora_adapter_path", str(adapters["lora"]), "--output_path", str(tmp_path)]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert main(["--base_model_path", str(tmp_path), *["--lora_adapter_path", str(adapters["lora"])],
                 "--output_path", str(tmp_path / "merged")]) == 2  # fmt: skip
    assert "no model folder" in capsys.readouterr().err


def test_a_probe_has_texts_that_every_vocabulary_tells_apart(tiny_bert):
    tokenizer = load_tokenizer(ModelConfig(path=str(tiny_bert)), str(tiny_bert))
    own = probe_texts(tokenizer)[len(TEXTS) :]
    ids = [tokenizer(text)["input_ids"] for text in own]
    assert [len(text) - 2 for text in ids] == list(LENGTHS)
    assert len({token for text in ids for token in text}) > 40
