"""Writing a model folder from an embedder's weights."""

import json
from pathlib import Path

from torch import Tensor

from data_prep.texts.tokenizer_rules import read_object
from trainer.model import dense_layers, quantization
from trainer.model.embedder import Embedder
from trainer.model_folder import dense
from trainer.model_folder.older_versions import add_older_names, write_tokenizer_settings
from trainer.model_folder.spec import POOLINGS, ModelSpec


def save_embedder(folder: Path, weights: dict[str, Tensor], embedder: Embedder, tokenizer, spec: ModelSpec) -> None:
    """Writes a folder that sentence-transformers and transformers load, versions 4.57 and 5 alike.

    weights: fp32 CPU tensors by the embedder's parameter names, of the whole model or of its adapter."""
    backbone = embedder.backbone
    dense_layers.write(folder, spec.dense, weights)
    weights = {name: tensor for name, tensor in weights.items() if not dense.is_of(name, spec.dense)}
    if embedder.adapter:
        embedder.adapter.write(folder, weights)
    else:
        dtype = next(str(tensor.dtype) for tensor in weights.values() if tensor.is_floating_point())
        # The tensor names of this transformers, not those of the loaded file: the same on every engine.
        backbone.config.use_cache = embedder.own_use_cache
        backbone.save_pretrained(folder, state_dict=weights, save_original_format=False)
        backbone.config.use_cache = False
        _state_dtype(folder / "config.json", dtype.removeprefix("torch."))
    tokenizer.save_pretrained(folder)
    write_tokenizer_settings(folder, tokenizer.model_input_names, tokenizer.padding_side)
    add_older_names(folder)
    kinds = ["Transformer", "Pooling", *("Dense" for _ in spec.dense)] + (["Normalize"] if spec.normalize else [])
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    pooling = {"word_embedding_dimension": embedder.pooled_size}
    pooling |= {key: name == spec.pooling for name, key in POOLINGS.items()}
    pooling["include_prompt"] = spec.pool_prompt
    prompts = {"query": spec.rules.query_prompt, "document": spec.rules.passage_prompt}
    prompts |= spec.named_prompts | spec.own_prompts.named
    for module in modules[1:]:
        (folder / module["path"]).mkdir(exist_ok=True)
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        # one length for both sides is all that this file can say: the longer, so that nothing is cut silently
        "sentence_bert_config.json": {"max_seq_length": spec.rules.max_len}
        | (_of_base(embedder, spec) if embedder.adapter else {}),
        "config_sentence_transformers.json": {
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine" if spec.normalize else "dot",
        },
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _state_dtype(path: Path, dtype: str) -> None:
    """Writes the dtype of the weights into config.json, by which others load: in training it may be another."""
    settings = read_object(path) | {"dtype": dtype}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _of_base(embedder: Embedder, spec: ModelSpec) -> dict:
    """Returns arguments to load an adapter's base, for sentence-transformers and read_spec."""
    arguments: dict = {}
    if spec.bidirectional is not None:
        arguments["config_kwargs"] = {"is_causal": not spec.bidirectional}
    if spec.bits:
        arguments["model_kwargs"] = {"quantization_config": quantization.settings(spec.bits, None)}
    return arguments
