"""Facts of model families that transformers does not state, by model_type. No torch.

Other families train too: padded, in full or with adapters on every linear layer. What needs a fact of this table
(frozen layers, bidirectional attention, texts without padding, remote code left out) is refused for them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Names and properties of a family's transformer."""

    # linear layers that take adapters by default: all of a block (Dettmers et al. 2023, arXiv:2305.14314, section 4)
    targets: tuple[str, ...]
    blocks: str  # the list of transformer blocks
    embeddings: tuple[str, ...]  # modules before the first block
    causal: bool = False  # a decoder, whose tokens see only earlier ones
    plain_attention: bool = False  # softmax(q k) v alone, with position ids as an argument: texts can be packed
    token_types: bool = False  # takes token type ids
    fp32_base: bool = False  # with frozen weights in bf16 the gradient is not that of the rounded weights to 1e-5
    model_class: str = "AutoModel"  # another one where AutoModel would load more than the encoder


def family_of(backbone) -> Family | None:
    """Returns the family of a loaded transformer. None also for a folder's own code, which may attend otherwise."""
    theirs = type(backbone).__module__.startswith("transformers.")
    return FAMILIES.get(backbone.config.model_type) if theirs else None


_DENSE = ("intermediate.dense", "output.dense")  # not that of a pooler, which is not trained
_BERT = Family(
    ("query", "key", "value", *_DENSE), "encoder.layer", ("embeddings",), plain_attention=True, token_types=True
)
_LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_DECODER = Family(_LLAMA_TARGETS, "layers", ("embed_tokens",), causal=True, plain_attention=True)
_T5_TARGETS = ("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo")
FAMILIES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "mpnet": Family(("q", "k", "v", "o", *_DENSE), "encoder.layer", ("embeddings",)),
    "distilbert": Family(
        ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"),
        "transformer.layer",
        ("embeddings",),
        plain_attention=True,
    ),
    "modernbert": Family(("Wqkv", "Wi", "Wo"), "layers", ("embeddings",), plain_attention=True),
    "nomic_bert": Family(_LLAMA_TARGETS, "layers", ("embeddings",), plain_attention=True, token_types=True),
    "gte": Family(_LLAMA_TARGETS, "layers", ("embeddings",), plain_attention=True),
    "deberta-v2": Family(
        ("query_proj", "key_proj", "value_proj", "pos_key_proj", "pos_query_proj", *_DENSE),
        "encoder.layer",
        ("embeddings",),
        fp32_base=True,
    ),
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "llama": _DECODER,
    "mistral": _DECODER,
    # its config says which way it looks (EmbeddingGemma: both)
    "gemma3_text": Family(_LLAMA_TARGETS, "layers", ("embed_tokens",), plain_attention=True),
    "t5": Family(_T5_TARGETS, "encoder.block", ("shared",), model_class="T5EncoderModel"),
    "mt5": Family(_T5_TARGETS, "encoder.block", ("shared",), model_class="MT5EncoderModel"),
}
