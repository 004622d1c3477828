"""Models with random weights, and batches of random tokens: no download, no data."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.config.sections import ModelConfig, OptimConfig
from trainer.distributed.collectives import World
from trainer.engine.torch_engine import TorchEngine
from trainer.loss.batch import Batch
from trainer.loss.exchange import DocumentKeys
from trainer.model.build import load_embedder

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = 2000


@dataclass(frozen=True)
class Scale:
    """Sizes of models and batches."""

    encoder: dict  # arguments of BertConfig
    decoder: dict  # arguments of Qwen3Config
    tokens: int  # of a step
    longest: int  # text


REAL = Scale(
    encoder={},  # BERT-base, 110M
    decoder={  # as Qwen3-0.6B
        "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151_936,
    },
    tokens=65_536,
    longest=512,
)  # fmt: skip
SMALL = Scale(
    encoder={"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    decoder={
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "intermediate_size": 64, "vocab_size": 2100,
    },
    tokens=1024,
    longest=64,
)  # fmt: skip


def write_models(folder: Path, scale: Scale) -> dict[str, Path]:
    """Writes `encoder` and `decoder` with random weights and a tokenizer; returns their folders."""
    from transformers import BertConfig, BertModel, Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    made = {
        "encoder": BertModel(BertConfig(**scale.encoder), add_pooling_layer=False),
        "decoder": Qwen3Model(Qwen3Config(**scale.decoder, max_position_embeddings=2048)).bfloat16(),
    }
    for name, model in made.items():
        model.save_pretrained(folder / name)
        _write_tokenizer(folder / name)
    return {name: folder / name for name in made}


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(mark, vocabulary[mark]) for mark in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)


def engine_of(
    folder: Path, device: torch.device, dtype: torch.dtype | None, recompute: bool = False, **model
) -> TorchEngine:
    """The engine of one process. model: keys of the run file's section."""
    pooling = "mean" if "encoder" in folder.name else "last"
    config = ModelConfig(path=str(folder), pooling=pooling, normalize=True, **model)
    embedder = load_embedder(config, device=device, dtype=dtype)[0]
    if recompute:
        embedder.recompute()
    return TorchEngine(embedder, OptimConfig(lr=1e-4), World(), device, dtype)


def lengths_of(tokens: int, longest: int, seed: int = 0) -> list[int]:
    """Lengths of texts of `tokens` tokens in all: as those of passages, many short and few long."""
    rng, lengths = random.Random(seed), []
    while sum(lengths) < tokens:
        lengths.append(max(4, min(longest, round(rng.lognormvariate(4.6, 0.8)))))
    return lengths[: len(lengths) // 2 * 2]


def batch_of(lengths: list[int], seed: int = 0) -> Batch:
    """Pairs of random texts of the given lengths: the first half queries, the second their positives."""
    rows = len(lengths) // 2
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(len(SPECIAL), WORDS, (n,), generator=generator).tolist() for n in lengths]
    keys = torch.arange(3 * rows).reshape(rows, 3)
    number = torch.linspace(0, 1, rows, dtype=torch.float64)
    return Batch(
        row_ids=list(range(rows)), tokens=tokens, row_keys=keys[:, :1].clone(), row_query=keys[:, 2].clone(),
        documents=DocumentKeys(*keys.unbind(dim=1), row=torch.arange(rows)), scores=number, teacher_positive=number,
        teacher_negative=torch.zeros(0, dtype=torch.float64), global_rows=rows, seed=seed,
    )  # fmt: skip


def relative(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """|got - expected| / |expected| over all parameters as one vector."""
    error = sum((got[name].double() - expected[name].double()).square().sum() for name in expected)
    return float((error / sum(expected[name].double().square().sum() for name in expected)).sqrt())
