"""Tiny models and shards made on the spot, for tests that need real loading, real training and no download."""

import json
import random
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

WORDS = [f"w{i}" for i in range(400)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def tokenizer(folder: Path, bert: bool = True, eos: bool = True, side: str = "right", pairs: bool = False):
    """A word-level tokenizer; with [CLS] … [SEP] around a text, or (decoders, T5) [SEP] after it, or (no eos) nothing.

    side: on which sentence-transformers pads. pairs: byte pairs in place of words; transformers takes nothing else for
    some families.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if pairs:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(vocab_size=404, special_tokens=SPECIAL, show_progress=False)
        made.train_from_iterator([" ".join(WORDS)], trainer)
    else:
        made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
    single = "[CLS] $A [SEP]" if bert else "$A [SEP]"
    if bert or eos:
        made.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names |= {} if bert else {"eos_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=made, padding_side=side, **names)
    fast.save_pretrained(folder)
    return fast


FAMILIES = {  # ours -> how its texts are pooled where a test does not care
    "bert": "mean", "xlm-r": "cls", "mpnet": "mean", "modernbert": "mean",
    "qwen2": "last", "qwen3": "last", "llama": "last", "t5": "mean", "distilbert": "mean", "deberta": "cls",
    "nomic": "mean", "gte": "cls", "mistral": "last", "gemma3": "mean",
}  # fmt: skip
DECODERS = ("qwen2", "qwen3", "llama", "mistral")


def model(
    folder: Path,
    family: str = "bert",
    pooling: str | None = "mean",
    dropout: float = 0.1,
    layers: int = 2,
    eos: bool = True,
    side: str = "right",
) -> Path:
    """A folder with random weights of one family; pooling None leaves out sentence-transformers' files.

    eos, side: see tokenizer().
    """
    import torch

    made = _made(family, pooling, dropout, layers, eos, side)
    torch.manual_seed(0)
    shutil.copytree(made.name, folder, dirs_exist_ok=True)
    return folder


@cache
def _made(family: str, *options) -> tempfile.TemporaryDirectory:
    """The same folder for all that ask for the same: made once in a test process."""
    import torch
    from transformers.utils import logging

    pooling, dropout, layers, eos, side = options
    logging.disable_progress_bar()
    torch.manual_seed(0)
    place = tempfile.TemporaryDirectory(prefix="embedfleet-tiny-")
    _backbone(family, dropout, layers).save_pretrained(place.name)
    tokenizer(Path(place.name), family not in (*DECODERS, "t5"), eos, side, pairs=family == "qwen2")
    if pooling:
        _for_sentence_transformers(Path(place.name), pooling)
    return place


def _for_sentence_transformers(folder: Path, pooling: str) -> None:
    keys = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken", "weighted_mean": "weightedmean_tokens"}
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{k}" if i else "", "type": f"sentence_transformers.models.{k}"}
        for i, k in enumerate(kinds)
    ]
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "2_Normalize").mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(modules))
    modes = {f"pooling_mode_{key}": name == pooling for name, key in keys.items()}
    values = {"word_embedding_dimension": 32} | modes
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(values))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32}))


def with_dense(folder: Path, family: str, pooling: str, layers: list[tuple[int, bool, str]], normalize: bool) -> Path:
    """A folder with dense layers behind the pooling, written by sentence-transformers. layers: each its numbers out,
    whether it has a bias, and its activation.
    """
    import torch
    from sentence_transformers import SentenceTransformer, models

    plain = SentenceTransformer(str(model(folder.with_name(f"{folder.name}-plain"), family, pooling)), device="cpu")
    modules, size = [plain[0], plain[1]], 32
    for outputs, bias, activation in layers:
        modules.append(models.Dense(size, outputs, bias, getattr(torch.nn, activation)()))
        size = outputs
    SentenceTransformer(modules=[*modules, *([plain[2]] if normalize else [])], device="cpu").save(str(folder))
    return folder


CONFIGURATION = """
from transformers import PretrainedConfig


class OwnConfig(PretrainedConfig):
    model_type = "own"

    def __init__(self, vocab_size=404, hidden_size=32, max_position_embeddings=64, **kwargs):
        super().__init__(**kwargs)
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.max_position_embeddings = max_position_embeddings
"""
MODELING = """
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .configuration_own import OwnConfig


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.mix = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    def forward(self, input_ids, attention_mask, **kwargs):
        hidden, mask = self.words(input_ids), attention_mask.unsqueeze(-1)
        mean = (hidden * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        return BaseModelOutput(last_hidden_state=hidden + self.mix(mean).tanh())
"""


def own_code(folder: Path) -> Path:
    """A folder of a model that only its own code can make."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    (folder / "configuration_own.py").write_text(CONFIGURATION)
    (folder / "modeling_own.py").write_text(MODELING)
    named = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    settings = {"model_type": "own", "architectures": ["OwnModel"], "auto_map": named, "hidden_size": 32}
    (folder / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 64}))
    shapes = {"words.weight": (404, 32), "mix.weight": (32, 32), "mix.bias": (32,)}
    weights = {name: torch.randn(shape) / 4 for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer(folder)
    _for_sentence_transformers(folder, "mean")
    return folder


def cross_encoder(folder: Path, labels: int = 1) -> Path:
    """A folder with random weights of a small BERT that scores pairs."""
    import torch
    import transformers as tf

    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=labels,
        initializer_range=0.5,  # scores that differ
    )
    tf.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer(folder)
    return folder


def _backbone(family: str, dropout: float, layers: int):
    import transformers as tf

    size = {"vocab_size": len(SPECIAL) + len(WORDS), "hidden_size": 32, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 2, "intermediate_size": 64}
    positions = {"max_position_embeddings": 64}
    if family == "bert":
        drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        return tf.BertModel(tf.BertConfig(**size, **heads, **drop, **positions))
    if family == "xlm-r":
        wide = {
            "initializer_range": 0.3
        }  # with 0.02 its first token, which is the embedding, sees nothing of the others
        return tf.XLMRobertaModel(
            tf.XLMRobertaConfig(**size, **heads, **wide, max_position_embeddings=66, pad_token_id=0)
        )
    if family == "mpnet":
        return tf.MPNetModel(tf.MPNetConfig(**size, **heads, max_position_embeddings=66, pad_token_id=0))
    if family == "modernbert":
        special = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
        windows = {"global_attn_every_n_layers": 2, "local_attention": 16}
        return tf.ModernBertModel(tf.ModernBertConfig(**size, **heads, **positions, **special, **windows))
    if family == "t5":
        blocks = {"num_layers": layers, "num_heads": 2, "d_model": 32, "d_kv": 16, "d_ff": 64, "dropout_rate": dropout}
        return tf.T5Model(tf.T5Config(vocab_size=size["vocab_size"], **blocks))
    if family == "gemma3":  # as EmbeddingGemma: a decoder whose tokens see one another
        own = {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 16, "use_bidirectional_attention": True}
        return tf.Gemma3TextModel(tf.Gemma3TextConfig(**size, **heads, **positions, **own))
    if family == "distilbert":
        own = {"dim": 32, "n_layers": layers, "n_heads": 2, "hidden_dim": 64, "dropout": dropout}
        return tf.DistilBertModel(tf.DistilBertConfig(vocab_size=size["vocab_size"], **own, **positions))
    if family == "deberta":
        own = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
        return tf.DebertaV2Model(tf.DebertaV2Config(**size, **heads, **positions, **own))
    if family in ("nomic", "gte"):
        name = {"nomic": "NomicBert", "gte": "Gte"}[family]
        return getattr(tf, f"{name}Model")(getattr(tf, f"{name}Config")(**size, **heads, **positions))
    if family == "mistral":
        own = {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 8}
        return tf.MistralModel(tf.MistralConfig(**size, **heads, **positions, **own))
    kind = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}[family]
    return getattr(tf, f"{kind}Model")(
        getattr(tf, f"{kind}Config")(**size, **heads, **positions, num_key_value_heads=1, head_dim=16)
    )


def adapter(folder: Path, base: Path, r: int = 4, dora: bool = False) -> Path:
    """An adapter folder for a tiny BERT as peft writes it, of random A and B on every linear layer of its blocks."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(1)
    made = {}
    for name, weight in load_file(base / "model.safetensors").items():
        if name.startswith("encoder.") and weight.dim() == 2:
            place = f"base_model.model.{name.removesuffix('.weight')}"
            made[f"{place}.lora_A.weight"] = torch.randn(r, weight.shape[1]) / 8
            made[f"{place}.lora_B.weight"] = torch.randn(weight.shape[0], r) / 8
            if dora:
                made[f"{place}.lora_magnitude_vector"] = weight.norm(dim=1) * (4 + 2 * torch.rand(len(weight)))
    folder.mkdir(parents=True)
    save_file(made, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = ["query", "key", "value", "intermediate.dense", "output.dense"]
    settings = {"peft_type": "LORA", "r": r, "lora_alpha": 6, "use_rslora": not dora, "use_dora": dora}
    settings |= {"target_modules": targets, "base_model_name_or_path": str(base), "task_type": "FEATURE_EXTRACTION"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def fill_adapter(embedder) -> None:
    """Gives a new adapter something to add: B of random numbers in place of zeros."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in embedder.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)


def without_bf16_instructions() -> None:
    """Makes 4-bit layers of other libraries the same on every CPU: with such instructions bitsandbytes repacks them,
    which needs 64 columns, and the tiny models have 32. The trainer never lets it.
    """
    with suppress(ImportError):  # the extra qlora is not installed
        from bitsandbytes.nn import modules

        modules.has_avx512bf16 = lambda: False


def rows(count: int, seed: int = 0, negatives: bool = True) -> list[dict]:
    """Records whose positive shares words with its query; ragged hard negatives, lengths that differ much."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        topic = rng.sample(WORDS, 6)
        query = rng.sample(topic, 3)
        positive = topic + rng.choices(WORDS, k=rng.randint(0, 18))
        extra = [" ".join(rng.choices(WORDS, k=rng.randint(2, 20))) for _ in range(rng.randint(0, 2))]
        made.append(
            {
                "query": " ".join(query),
                "positives": [" ".join(positive)],
                "negatives": extra if negatives else [],
                "id": f"r{i}",
                "doc_ids": [f"d{i}"],
            }
        )
    return made


def shards(folder: Path, count: int, eval_fraction: float = 0.0, seed: int = 0, negatives: bool = True) -> Path:
    """A shard folder of `count` generated rows, written by the real command."""
    from data_prep.__main__ import main

    source = folder.with_suffix(".jsonl")
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("".join(json.dumps(row) + "\n" for row in rows(count, seed, negatives)))
    code = main(["shard", str(source), "--output", str(folder), "--eval-fraction", str(eval_fraction)])
    assert code == 0, code
    return folder


def chat_model(folder: Path, answer: str) -> Path:
    """A folder with a language model that says `answer` to everything, and its tokenizer with a chat template.

    The answer is one token. Attention and MLP add nothing, so that the next token depends on the last one only: the
    answer follows every token, and the end follows the answer.
    """
    import torch
    import transformers as tf
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<|im_end|>", "<|endoftext|>", "<|im_start|>"]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(special)
    made.add_tokens([answer])
    fast = tf.PreTrainedTokenizerFast(tokenizer_object=made, eos_token=special[0], pad_token=special[1])
    fast.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    size = {"vocab_size": len(fast), "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4096}
    ids = {"eos_token_id": 0, "pad_token_id": 1, "bos_token_id": None}
    network = tf.Qwen2ForCausalLM(tf.Qwen2Config(**size, **heads, **ids, tie_word_embeddings=False))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if not name.endswith("norm.weight"):
                weight.zero_()
        embed, head = network.model.embed_tokens.weight, network.lm_head.weight
        embed[:, 0] = 1.0
        embed[-1] = 0.0
        embed[-1, 1] = 1.0
        head[-1, 0] = head[0, 1] = 1.0
    network.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
