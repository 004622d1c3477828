"""Every family and pooling: as transformers' plain forward pass, and as sentence-transformers' own encode, on each side
of padding; what a folder cannot be loaded as is refused.
"""

import copy
import json
import shutil

import pytest
import torch
import torch.nn.functional as F

from data_prep.common.errors import BadInput
from tests import tiny
from trainer.config.sections import ModelConfig, OptimConfig
from trainer.distributed.collectives import World
from trainer.engine.torch_engine import TorchEngine
from trainer.inference.encode import encode
from trainer.model.build import load_embedder
from trainer.model.embedder import pool
from trainer.model.save import save_embedder
from trainer.model.tokenizer import load_tokenizer, tokenize
from trainer.model_folder.files import weights_sha256
from trainer.model_folder.spec import POOLINGS, read_spec

TEXTS = ["w1 w2 w3", "w4", " ".join(tiny.WORDS[:40]), "w7 w8 w9 w10 w11"]  # the third is cut


def name_of(pooling: str) -> str:
    """In sentence-transformers 6."""
    return {"last": "lasttoken", "weighted_mean": "weightedmean"}.get(pooling, pooling)


def engine_of(embedder) -> TorchEngine:
    return TorchEngine(embedder, OptimConfig(), World(), torch.device("cpu"), None)


def ours(config: ModelConfig, texts=TEXTS) -> tuple[torch.Tensor, tuple]:
    loaded = embedder, tokenizer, spec, _ = load_embedder(config)
    return encode(engine_of(embedder), tokenizer, texts, spec.rules.passage_prompt, spec.rules.passage_max_len), loaded


def theirs(folder) -> torch.Tensor:
    from sentence_transformers import SentenceTransformer

    return torch.tensor(SentenceTransformer(str(folder), device="cpu").encode(TEXTS))


def reference(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """One text after the other, of its real tokens only."""
    rows = []
    for states, real in zip(hidden, mask.bool()):
        states = states[real]
        weights = torch.arange(1.0, len(states) + 1)[:, None]
        rows.append({
            "mean": states.mean(dim=0),
            "cls": states[0],
            "last": states[-1],
            "weighted_mean": (states * weights).sum(dim=0) / weights.sum(),
        }[pooling])  # fmt: skip
    return F.normalize(torch.stack(rows), dim=1)


def plain(folder, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(hidden states, mask) of transformers' own forward pass over one padded batch."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer, T5EncoderModel

    kind = T5EncoderModel if AutoConfig.from_pretrained(folder).model_type == "t5" else AutoModel
    model, tokenizer = kind.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder, padding_side=side)
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=32, return_tensors="pt")
    with torch.no_grad():
        out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return out.last_hidden_state, batch["attention_mask"]


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_embeddings_are_transformers_own_and_sentence_transformers_own_for_every_pooling(tmp_path, family):
    from sentence_transformers import SentenceTransformer

    folder = tiny.model(tmp_path / "model", family, tiny.FAMILIES[family])
    _, (embedder, tokenizer, spec, _) = ours(ModelConfig(path=str(folder)))
    model = SentenceTransformer(str(folder), device="cpu")
    assert model[1].pooling_mode == name_of(spec.pooling)
    states, mask = plain(folder, "right")
    for pooling in POOLINGS:
        embedder.pooling = pooling
        model[1].pooling_mode = name_of(pooling)
        found = encode(engine_of(embedder), tokenizer, TEXTS, "", 32)
        assert (found - reference(states, mask, pooling)).abs().max() < 1e-5, pooling
        assert (found - torch.tensor(model.encode(TEXTS))).abs().max() < 1e-5, pooling


@pytest.mark.parametrize("pooling", list(POOLINGS))
def test_the_pooling_of_a_folder_is_read_in_the_old_and_in_the_new_words(tmp_path, tiny_bert, pooling):
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    file = folder / "1_Pooling" / "config.json"
    for words in ({POOLINGS[pooling]: True}, {"pooling_mode": name_of(pooling)}):
        file.write_text(json.dumps({"word_embedding_dimension": 32, **words}))
        assert read_spec(ModelConfig(path=str(folder)), folder).pooling == pooling


@pytest.mark.parametrize("family", tiny.DECODERS)
def test_a_decoder_padded_on_the_left_elsewhere_embeds_the_same(tmp_path, family):
    folder = tiny.model(tmp_path / "model", family, "last", side="left")
    found, (embedder, tokenizer, spec, _) = ours(ModelConfig(path=str(folder)))
    assert (found - reference(*plain(folder, "left"), "last")).abs().max() < 1e-5
    assert (found - theirs(folder)).abs().max() < 1e-5
    (tmp_path / "saved").mkdir()
    save_embedder(tmp_path / "saved", dict(embedder.stored()), embedder, tokenizer, spec)
    assert json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())["padding_side"] == "left"
    assert (found - theirs(tmp_path / "saved")).abs().max() < 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
def test_last_token_pooling_is_the_rule_that_decoders_publish(side):
    """Left padding: the last position. Right padding: the last token that is not padding."""
    hidden, lengths = torch.randn(4, 6, 3), [6, 1, 4, 5]
    mask = torch.tensor([[0] * (6 - n) + [1] * n if side == "left" else [1] * n + [0] * (6 - n) for n in lengths])
    left = bool(mask[:, -1].all())
    assert left == (side == "left")
    expected = hidden[:, -1] if left else hidden[torch.arange(4), mask.sum(dim=1) - 1]
    assert torch.equal(pool(hidden, mask, "last"), expected)


def test_a_decoder_can_attend_in_both_directions_here_and_in_sentence_transformers(tmp_path):
    folder = tiny.model(tmp_path / "model", "qwen2", "mean")
    causal, _ = ours(ModelConfig(path=str(folder)))
    both, (embedder, tokenizer, spec, _) = ours(ModelConfig(path=str(folder), bidirectional=True))
    assert (causal - both).abs().max() > 1e-2
    assert embedder.packing is not None, "without padding, too"
    (tmp_path / "saved").mkdir()
    save_embedder(tmp_path / "saved", dict(embedder.stored()), embedder, tokenizer, spec)
    assert (theirs(tmp_path / "saved") - both).abs().max() < 1e-5
    assert (ours(ModelConfig(path=str(tmp_path / "saved")))[0] - both).abs().max() < 1e-6, "the folder says so"
    back, _ = ours(ModelConfig(path=str(tmp_path / "saved"), bidirectional=False))
    assert (back - causal).abs().max() < 1e-6


def test_only_a_decoder_has_the_choice(tiny_bert):
    with pytest.raises(BadInput, match="only a decoder has the choice"):
        read_spec(ModelConfig(path=str(tiny_bert), bidirectional=True), tiny_bert)


def test_eos_is_appended_where_the_tokenizer_does_not_and_the_export_does_it_too(tmp_path):
    folder = tiny.model(tmp_path / "model", "qwen3", "last", eos=False, side="left")
    bare, (_, tokenizer, spec, _) = ours(ModelConfig(path=str(folder)))
    assert any("ends no text in EOS" in note for note in spec.notes)
    found, (embedder, tokenizer, spec, _) = ours(ModelConfig(path=str(folder), append_eos=True))
    assert not any("EOS" in note for note in spec.notes)
    assert (found - bare).abs().max() > 1e-2
    ids, cut = tokenize(TEXTS, "", 8, copy.deepcopy(tokenizer))
    assert all(text[-1] == tokenizer.eos_token_id and text.count(text[-1]) == 1 for text in ids), "also where it is cut"
    assert max(map(len, ids)) == 8 and cut == 1
    (tmp_path / "saved").mkdir()
    save_embedder(tmp_path / "saved", dict(embedder.stored()), embedder, tokenizer, spec)
    assert (theirs(tmp_path / "saved") - found).abs().max() < 1e-5


def test_a_folder_that_reads_lower_case_is_read_so_and_exported_so(tmp_path, tiny_bert):
    from sentence_transformers import SentenceTransformer

    shutil.copytree(tiny_bert, tmp_path / "model")
    path, texts = tmp_path / "model" / "sentence_bert_config.json", ["W1 w2 W3", "W4"]
    stated = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(stated | {"do_lower_case": True}))
    found, (embedder, tokenizer, spec, _) = ours(ModelConfig(path=str(tmp_path / "model")), texts)
    assert (found - ours(ModelConfig(path=str(tiny_bert)), texts)[0]).abs().max() > 1e-2
    (tmp_path / "saved").mkdir()
    save_embedder(tmp_path / "saved", dict(embedder.stored()), embedder, tokenizer, spec)
    for folder in ("model", "saved"):
        encoded = torch.tensor(SentenceTransformer(str(tmp_path / folder), device="cpu").encode(texts))
        assert (encoded - found).abs().max() < 1e-5


def test_a_tokenizer_without_eos_cannot_append_it(tiny_bert):
    with pytest.raises(BadInput, match="has no EOS token"):
        load_embedder(ModelConfig(path=str(tiny_bert), append_eos=True))


def test_a_tokenizer_of_its_own_is_used_and_one_with_more_tokens_is_refused(tmp_path, tiny_bert):
    other = tmp_path / "tokenizer"
    tiny.tokenizer(other, bert=False)
    asked = ModelConfig(path=str(tiny_bert), tokenizer=str(other))
    assert load_tokenizer(asked, str(tiny_bert))("w1")["input_ids"] == [5, 3]
    load_embedder(asked)
    values = json.loads((other / "tokenizer.json").read_text())
    values["model"]["vocab"] |= {"extra": 404}
    (other / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(BadInput, match="token ids up to 404"):
        load_embedder(asked)


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_remote_code_of_a_known_family_is_left_out_if_its_attention_is_stated(tmp_path):
    folder = tiny.model(tmp_path / "model", "qwen2", "last")
    expected, _ = ours(ModelConfig(path=str(folder)))
    edit(folder / "config.json", auto_map={"AutoModel": "modeling_qwen.Qwen2Model"})
    with pytest.raises(BadInput, match="set model.bidirectional to true or false"):
        read_spec(ModelConfig(path=str(folder)), folder)
    found, (embedder, tokenizer, spec, _) = ours(ModelConfig(path=str(folder), bidirectional=False))
    assert torch.allclose(found, expected, atol=1e-6)
    assert any("own code is not run" in note for note in spec.notes)
    (tmp_path / "saved").mkdir()
    save_embedder(tmp_path / "saved", dict(embedder.stored()), embedder, tokenizer, spec)
    assert "auto_map" not in (tmp_path / "saved" / "config.json").read_text()


def test_remote_code_that_adds_tensors_to_a_known_family_is_refused(tmp_path, tiny_bert):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    edit(folder / "config.json", auto_map={"AutoModel": "x.Y"})
    load_embedder(ModelConfig(path=str(folder)))
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.0.attention.self.layer_norm_q.weight"] = torch.ones(16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match="its own code is needed"):
        load_embedder(ModelConfig(path=str(folder)))


def test_a_folder_that_sentence_transformers_wrote_is_read_as_it_reads_it(tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = tiny.model(tmp_path / "model", "qwen3", "weighted_mean")
    SentenceTransformer(str(folder), device="cpu").save(str(tmp_path / "theirs"))
    found, (_, _, spec, _) = ours(ModelConfig(path=str(tmp_path / "theirs")))
    assert (spec.pooling, spec.normalize, spec.rules.query_max_len) == ("weighted_mean", True, 32)
    assert (found - theirs(tmp_path / "theirs")).abs().max() < 1e-5


def test_the_hash_of_weights_is_of_tensors_not_of_files(tmp_path, tiny_bert):
    from safetensors.torch import load_file, save_file

    weights = load_file(tiny_bert / "model.safetensors")
    names = sorted(weights)
    save_file({n: weights[n] for n in names[:9]}, tmp_path / "a.safetensors")
    save_file({n: weights[n] for n in names[9:]}, tmp_path / "b.safetensors", metadata={"format": "pt"})
    assert weights_sha256(tmp_path) == weights_sha256(tiny_bert)
    weights[names[0]].view(-1)[0] += 1
    save_file({n: weights[n] for n in names[:9]}, tmp_path / "a.safetensors")
    assert weights_sha256(tmp_path) != weights_sha256(tiny_bert)
