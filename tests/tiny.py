"""Tiny models and shards made on the spot, for tests that need real loading, real training and no download."""

import json
import random
from pathlib import Path

WORDS = [f"w{i}" for i in range(400)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def tokenizer(folder: Path, bert: bool = True):
    """A word-level tokenizer; with [CLS] … [SEP] around a text, or (decoders) [SEP] after it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    single = "[CLS] $A [SEP]" if bert else "$A [SEP]"
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(folder)
    return fast


def model(
    folder: Path, family: str = "bert", pooling: str | None = "mean", dropout: float = 0.1, layers: int = 2
) -> Path:
    """A folder with random weights of one family; pooling None leaves out sentence-transformers' files."""
    import torch
    import transformers as tf

    torch.manual_seed(0)
    size = {"vocab_size": len(SPECIAL) + len(WORDS), "hidden_size": 32, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 2, "intermediate_size": 64}
    if family == "bert":
        drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        made = tf.BertModel(tf.BertConfig(**size, **heads, **drop, max_position_embeddings=64))
    elif family == "xlm-r":
        made = tf.XLMRobertaModel(tf.XLMRobertaConfig(**size, **heads, max_position_embeddings=66, pad_token_id=0))
    elif family == "qwen2":
        made = tf.Qwen2Model(tf.Qwen2Config(**size, **heads, num_key_value_heads=1, max_position_embeddings=64))
    elif family == "llama":
        made = tf.LlamaModel(tf.LlamaConfig(**size, **heads, num_key_value_heads=1, max_position_embeddings=64))
    else:
        raise AssertionError(family)
    folder.mkdir(parents=True, exist_ok=True)
    made.save_pretrained(folder)
    tokenizer(folder, bert=family in ("bert", "xlm-r"))
    if pooling:
        keys = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}
        kinds = ["Transformer", "Pooling", "Normalize"]
        modules = [
            {"idx": i, "name": str(i), "path": f"{i}_{k}" if i else "", "type": f"sentence_transformers.models.{k}"}
            for i, k in enumerate(kinds)
        ]
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "2_Normalize").mkdir(exist_ok=True)
        (folder / "modules.json").write_text(json.dumps(modules))
        values = {"word_embedding_dimension": 32} | {key: name == pooling for name, key in keys.items()}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(values))
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32}))
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
