"""Adapters as other trainers leave them: of a language model or classifier, with heads and embeddings of their own."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file

from data_prep.common.errors import BadInput
from tests import tiny
from trainer.config.sections import ModelConfig, OptimConfig
from trainer.distributed.collectives import World
from trainer.engine.torch_engine import TorchEngine
from trainer.exporting.merging import merge
from trainer.inference.encode import encode
from trainer.model.build import load_embedder
from trainer.model.save import save_embedder

TEXTS = ["w1 w2 w3", "w4", " ".join(tiny.WORDS[:20])]


def embeddings(loaded) -> torch.Tensor:
    embedder, tokenizer, spec, _ = loaded
    engine = TorchEngine(embedder, OptimConfig(), World(), torch.device("cpu"), None)
    return encode(engine, tokenizer, TEXTS, spec.rules.passage_prompt, spec.rules.passage_max_len)


def made_by_peft(folder, base, kind: str, task: str, lora: dict):
    """Writes the adapter of a model with a head as peft does; returns the hidden states' embeddings of TEXTS."""
    import peft
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, kind).from_pretrained(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type=task, r=4, **lora))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(std=0.1)
            if "embed_tokens.base_layer" in name:  # which peft saves; it does not save a BERT's
                parameter += 0.05 * torch.randn_like(parameter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.save_pretrained(folder)
    return adapted


FULL_NAME = "model.layers.1.self_attn.q_proj"
HEADS = {  # name -> family, class with a head, task, peft's settings
    "language model": ("qwen3", "Qwen3ForCausalLM", "CAUSAL_LM", {"target_modules": ["q_proj", "v_proj"]}),
    "its head too": ("llama", "LlamaForCausalLM", "CAUSAL_LM", {"target_modules": ["q_proj", "lm_head"]}),
    "its head whole": (
        "qwen3", "Qwen3ForCausalLM", "CAUSAL_LM", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ),
    "full names": (
        "qwen3", "Qwen3ForCausalLM", "CAUSAL_LM",
        {"target_modules": [FULL_NAME], "alpha_pattern": {FULL_NAME: 32}},
    ),
    "classifier": ("bert", "BertForSequenceClassification", "SEQ_CLS", {"target_modules": ["query", "value"]}),
    "tokens": ("bert", "BertForTokenClassification", "TOKEN_CLS", {"target_modules": ["query"]}),
    "embeddings": ("qwen3", "Qwen3ForCausalLM", "CAUSAL_LM", {"target_modules": ["q_proj", "embed_tokens"]}),
    "embeddings of a bert": ("bert", "BertModel", None, {"target_modules": ["query", "word_embeddings"]}),
    "embeddings whole": (
        "qwen3", "Qwen3ForCausalLM", "CAUSAL_LM", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ),
}  # fmt: skip


def expected(adapted, folder, pooling: str) -> torch.Tensor:
    """peft's own hidden states, pooled as the folder says."""
    from transformers import AutoTokenizer

    from trainer.model.embedder import pool

    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = adapted.eval()(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
        )
    return torch.nn.functional.normalize(pool(out.hidden_states[-1], batch["attention_mask"], pooling), dim=1)


@pytest.mark.parametrize("kind", list(HEADS))
def test_an_adapter_of_another_task_is_gone_on_from_written_and_merged(tmp_path, kind):
    family, head, task, settings = HEADS[kind]
    pooling = tiny.FAMILIES[family]
    base = tiny.model(tmp_path / "base", family, pooling)
    right = expected(made_by_peft(tmp_path / "start", base, head, task, settings), base, pooling)
    config = ModelConfig(path=str(base), finetune="lora", lora={"start": str(tmp_path / "start")})
    embedder, tokenizer, spec, _ = loaded = load_embedder(config)
    assert torch.allclose(embeddings(loaded), right, atol=1e-5)
    (tmp_path / "final").mkdir()
    save_embedder(tmp_path / "final", dict(embedder.stored()), embedder, tokenizer, spec)
    again = embeddings(load_embedder(ModelConfig(path=str(tmp_path / "final"))))
    assert torch.allclose(again, right, atol=1e-5), "final/ holds all that the start held"
    assert json.loads((tmp_path / "final" / "adapter_config.json").read_text())["task_type"] == "FEATURE_EXTRACTION"
    for adapter in ("start", "final"):
        assert merge(str(base), tmp_path / adapter, tmp_path / f"merged-{adapter}") < 1e-4
        merged = embeddings(load_embedder(ModelConfig(path=str(tmp_path / f"merged-{adapter}"))))
        assert torch.allclose(merged, right, atol=1e-4)


def test_the_embeddings_that_the_start_saved_are_in_final_and_others_load_them(tmp_path):
    from sentence_transformers import SentenceTransformer

    base = tiny.model(tmp_path / "base", "qwen3", "last")
    made_by_peft(tmp_path / "start", base, "Qwen3ForCausalLM", "CAUSAL_LM", {"target_modules": ["embed_tokens"]})
    config = ModelConfig(path=str(base), finetune="lora", lora={"start": str(tmp_path / "start")})
    embedder, tokenizer, spec, _ = loaded = load_embedder(config)
    (tmp_path / "final").mkdir()
    save_embedder(tmp_path / "final", dict(embedder.stored()), embedder, tokenizer, spec)
    name = "base_model.model.embed_tokens.base_layer.weight"
    start = load_file(tmp_path / "start" / "adapter_model.safetensors")
    final = load_file(tmp_path / "final" / "adapter_model.safetensors")
    assert torch.equal(final[name], start[name.replace("model.embed", "model.model.embed")])
    theirs = torch.tensor(SentenceTransformer(str(tmp_path / "final"), device="cpu").encode(TEXTS))
    assert torch.allclose(theirs, embeddings(loaded), atol=1e-5)


@pytest.mark.parametrize("lora", [{"target_modules": ["q_proj"]}, {"target_modules": ["q_proj", "embed_tokens"]}])
def test_an_adapter_of_a_base_with_added_tokens_is_one_line_with_the_mend(tmp_path, lora):
    import peft
    import transformers

    base = tiny.model(tmp_path / "base", "qwen3", "last")
    model = transformers.Qwen3ForCausalLM.from_pretrained(base)
    rows = model.config.vocab_size
    model.resize_token_embeddings(rows + 2)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, **lora))
    adapted.save_pretrained(tmp_path / "start", save_embedding_layers=True)
    config = ModelConfig(path=str(base), finetune="lora", lora={"start": str(tmp_path / "start")})
    with pytest.raises(BadInput, match=rf"embeddings of {rows + 2} tokens, its base has {rows}") as error:
        load_embedder(config)
    assert len(error.value.problems) == 1 and f"resize_token_embeddings({rows + 2})" in str(error.value)


def test_an_adapter_that_fits_nowhere_is_one_line(tmp_path):
    base = tiny.model(tmp_path / "base", "bert")
    adapter = tiny.adapter(tmp_path / "adapter", base)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": ["c_attn"]}))
    with pytest.raises(BadInput, match="does not fit a bert .*c_attn"):
        load_embedder(ModelConfig(path=str(base), finetune="lora", lora={"start": str(adapter)}))
