"""Tiny models between which something lies, and a retrieval set."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from trainer.config.sections import ModelConfig
from trainer.model.build import load_embedder
from trainer.model.save import save_embedder
from trainer.model_folder.files import weights_sha256

ADAPTERS = {
    "lora": {"finetune": "lora", "lora": {"r": 3}},
    "rslora": {"finetune": "lora", "lora": {"r": 3, "rslora": True}},
    "dora": {"finetune": "lora", "lora": {"r": 3, "dora": True}},
    "qlora": {"finetune": "qlora", "lora": {"r": 3}},
    "qdora": {"finetune": "qlora", "lora": {"r": 3, "dora": True}},
}


def tuned_copy(base: Path, folder: Path, by: float = 0.3) -> Path:
    """A whole model of the same shape, each tensor moved at random."""
    shutil.copytree(base, folder)
    weights = load_file(base / "model.safetensors")
    draws = torch.Generator().manual_seed(0)
    for name in sorted(weights):
        if weights[name].is_floating_point():
            size = weights[name].float().std() if weights[name].numel() > 1 else 1.0
            weights[name] += by * (size + 0.02) * torch.randn(weights[name].shape, generator=draws)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def trained_adapter(base: Path, folder: Path, kind: str) -> Path:
    """An adapter folder as runs write it; a DoRA's lengths are not the base's."""
    tiny.without_bf16_instructions()
    embedder, tokenizer, spec, _ = load_embedder(ModelConfig(path=str(base), **ADAPTERS[kind]))
    tiny.fill_adapter(embedder)
    draws = torch.Generator().manual_seed(1)
    for name, parameter in embedder.named_parameters():
        if "lora_magnitude_vector" in name:
            parameter.data *= 4 + 2 * torch.rand(parameter.shape, generator=draws)
    embedder.adapter.base_sha256 = weights_sha256(base)
    folder.mkdir()
    save_embedder(folder, dict(embedder.stored()), embedder, tokenizer, spec)
    return folder


def write_set(folder: Path, count: int, seed: int = 0) -> Path:
    """A retrieval set: a query and its document share words. Every fourth document has a second query."""
    folder.mkdir()
    rows = tiny.rows(count, seed)
    queries = [{"id": f"q{i}", "text": row["query"]} for i, row in enumerate(rows)]
    queries += [{"id": f"r{i}", "text": row["query"][::-1]} for i, row in enumerate(rows) if i % 4 == 0]
    docs = [{"id": f"d{i}", "title": "", "text": row["positives"][0]} for i, row in enumerate(rows)]
    judged = "".join(f"{query['id']}\td{query['id'][1:]}\t1\n" for query in queries)
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    (folder / "corpus.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "qrels.tsv").write_text(judged)
    return folder


@pytest.fixture(scope="session")
def between_folders(tmp_path_factory, tiny_bert) -> dict[str, Path]:
    """Tuned models of tiny_bert by kind: whole, and adapters."""
    where = tmp_path_factory.mktemp("tuned")
    made = {kind: trained_adapter(tiny_bert, where / kind, kind) for kind in ADAPTERS}
    return made | {"whole": tuned_copy(tiny_bert, where / "whole")}


@pytest.fixture(scope="session")
def sets(tmp_path_factory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("sets")
    return {"domain": write_set(where / "domain", 60), "general": write_set(where / "general", 52, 7)}
