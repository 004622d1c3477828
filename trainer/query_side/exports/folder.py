"""The folder of a query adapter: query_adapter.* for numpy and ONNX, and of an open model also one for
sentence-transformers.

In sentence-transformers' folder the model's own modules come first. Behind them a Router sends a query through the
adapter's dense layers, and leaves a document as it is: encode_query and encode_document.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from data_prep.common.files import write_json
from data_prep.texts.tokenizer_rules import read_json
from trainer.config.sections import OptimConfig
from trainer.distributed.collectives import World
from trainer.engine.torch_engine import TorchEngine
from trainer.inference.text_encoder import TextEncoder
from trainer.model.build import load_embedder
from trainer.model.save import save_embedder
from trainer.model_folder.files import weights_sha256
from trainer.query_side.adapter import Layer, QueryAdapter
from trainer.query_side.exports.onnx_graph import write_onnx
from trainer.run_dir.checkpoint_writer import write_output

MODULES = "sentence_transformers.models"
QUERY, DOCUMENT = "query", "document"
UNIT = "Normalize"


def write_folder(output: Path, adapter: QueryAdapter, encoder: TextEncoder | None, onnx: bool) -> None:
    """Writes the folder whole or not at all. encoder: the open model. onnx: writes a graph too."""

    def write(folder: Path) -> None:
        if encoder:
            write_model(folder, encoder)
            add_router(folder, adapter, encoder.loaded[0].embedder.size)
        adapter.save(folder)
        if onnx:
            write_onnx(adapter, folder)

    write_output(output, write)


def write_model(folder: Path, encoder: TextEncoder) -> None:
    """Writes the encoder's own model, loaded anew in this process."""
    cpu, spec = torch.device("cpu"), replace(encoder.spec, notes=[])
    embedder, tokenizer, spec, untrained = load_embedder(encoder.config, None, cpu, spec=spec)
    if embedder.adapter:
        embedder.adapter.base_sha256 = weights_sha256(Path(spec.base))
    engine = TorchEngine(embedder, OptimConfig(), World(), cpu, None)
    save_embedder(folder, engine.weights() | untrained, embedder, tokenizer, spec)


def add_router(folder: Path, adapter: QueryAdapter, size: int) -> None:
    """Puts a Router behind the modules of a folder. size: numbers of the model's vectors, of which the adapter may map
    the first ones alone."""
    modules = read_json(folder / "modules.json")
    name = f"{len(modules)}_Router"
    first = [] if size == adapter.dim else [Layer(np.eye(adapter.dim, size), np.zeros(adapter.dim))]
    routes = {QUERY: [*first, UNIT, *adapter.layers, UNIT], DOCUMENT: [*first, UNIT]}
    types, structure = {}, {}
    for route, steps in routes.items():
        structure[route] = []
        for number, step in enumerate(steps):
            kind = step if isinstance(step, str) else "Dense"
            own = f"{route}_{number}_{kind}"
            structure[route].append(own)
            types[own] = f"{MODULES}.{kind}"
            (folder / name / own).mkdir(parents=True)
            if kind == "Dense":
                _write_dense(folder / name / own, step)
    parameters = {"default_route": DOCUMENT, "allow_empty_key": True}
    write_json(folder / name / "router_config.json", {"types": types, "structure": structure, "parameters": parameters})
    modules.append({"idx": len(modules), "name": str(len(modules)), "path": name, "type": f"{MODULES}.Router"})
    write_json(folder / "modules.json", modules)


def _write_dense(folder: Path, layer: Layer) -> None:
    tensors = {"linear.weight": layer.weight, "linear.bias": layer.bias}
    tensors = {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    size, inputs = layer.weight.shape
    activation = "torch.nn.modules.activation.ReLU" if layer.relu else "torch.nn.modules.linear.Identity"
    values = {"in_features": inputs, "out_features": size, "bias": True, "activation_function": activation}
    write_json(folder / "config.json", values)
