"""Model folders without weights, and shards of texts whose lengths are known, for the planner's tests."""

import json
import random
from pathlib import Path

from tests import tiny

DECODERS = {  # name -> hidden size, layers, heads, key-value heads, feed-forward size, vocabulary; heads of 128 numbers
    "0.6B": (1024, 28, 16, 8, 3072, 151_669),
    "8B": (4096, 36, 32, 8, 12_288, 151_665),
    "14B": (5120, 40, 40, 8, 17_408, 151_936),
}
ENCODERS = {  # name -> hidden size, layers, heads, feed-forward size, vocabulary, positions
    "MiniLM": (384, 6, 12, 1536, 30_522, 512),
    "BGE-M3": (1024, 24, 16, 4096, 250_002, 8194),
}
QUERY, PASSAGE = 32, 200  # tokens of every text


def folder(path: Path, name: str) -> Path:
    """A folder with the config of a model of this name, a tokenizer, and no weights."""
    import transformers as tf

    if name in DECODERS:
        size, layers, heads, groups, inner, words = DECODERS[name]
        tiny.model(path, "qwen3", "last")
        values = tf.Qwen3Config(
            vocab_size=words, hidden_size=size, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=groups, head_dim=128, intermediate_size=inner, max_position_embeddings=32_768,
        )  # fmt: skip
    else:
        size, layers, heads, inner, words, positions = ENCODERS[name]
        tiny.model(path, "bert" if name == "MiniLM" else "xlm-r", "mean")
        kind = tf.BertConfig if name == "MiniLM" else tf.XLMRobertaConfig
        values = kind(
            vocab_size=words, hidden_size=size, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=inner, max_position_embeddings=positions,
        )  # fmt: skip
    values.save_pretrained(path)
    (path / "model.safetensors").unlink()
    return path


def shards(path: Path, rows: int, special: int) -> Path:
    """Rows of one query of QUERY tokens and one passage of PASSAGE. special: tokens that the tokenizer adds."""
    from data_prep.__main__ import main

    rng = random.Random(0)

    def text(tokens: int) -> str:
        return " ".join(rng.choices(tiny.WORDS, k=tokens - special))

    records = [{"query": text(QUERY), "positives": [text(PASSAGE)], "negatives": []} for _ in range(rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path.with_suffix(".jsonl")
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["shard", str(source), "--output", str(path), "--eval-fraction", "0"]) == 0
    return path


def run_file(path: Path, model: Path, data: Path, batch: int = 512, **of_model) -> Path:
    values = {
        "output_dir": str(path.with_suffix("")),
        "model": {"path": str(model), "query_max_len": 64, "passage_max_len": 256, **of_model},
        "data": {"train": str(data)},
        "train": {"batch_size": batch, "precision": "bf16"},
    }
    path.write_text(json.dumps(values))
    return path
