"""What is known of a model family beyond what transformers says, by model_type. Never imports torch.

A family that does not stand here trains as well, padded, in full or with adapters on every linear layer; what needs a
fact of this table (frozen layers, bidirectional attention, texts without padding, remote code left out) is refused.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """targets: linear layers that take adapters by default: all those of a block (Dettmers et al. 2023,
    arXiv:2305.14314, section 4, where fewer fell behind full training). blocks: the list of transformer blocks.
    embeddings: modules before the first block. causal: a decoder, whose tokens see only those before them.
    plain_attention: softmax(q k) v and
    nothing else, with position ids as an argument, so that texts can run end to end (packing.py). token_types: takes
    token type ids. model_class: of transformers, where AutoModel would load more than the encoder.
    """

    targets: tuple[str, ...]
    blocks: str
    embeddings: tuple[str, ...]
    causal: bool = False
    plain_attention: bool = False
    token_types: bool = False
    model_class: str = "AutoModel"


def family_of(backbone) -> Family | None:
    """Of a transformer that is loaded. None also for a class that a folder's own code defines: whatever family it says
    it is of, it may be built and attend otherwise.
    """
    theirs = type(backbone).__module__.startswith("transformers.")
    return FAMILIES.get(backbone.config.model_type) if theirs else None


_DENSE = ("intermediate.dense", "output.dense")  # not that of a pooler, which is not trained
_BERT = {
    "targets": ("query", "key", "value", *_DENSE), "blocks": "encoder.layer", "embeddings": ("embeddings",),
    "plain_attention": True, "token_types": True,
}  # fmt: skip
_ROBERTA = Family(**_BERT)
_DECODER = Family(
    ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), "layers", ("embed_tokens",),
    causal=True, plain_attention=True,
)  # fmt: skip
_T5_TARGETS = ("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo")
FAMILIES = {
    "bert": Family(**_BERT),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "mpnet": Family(("q", "k", "v", "o", *_DENSE), "encoder.layer", ("embeddings",)),
    "modernbert": Family(("Wqkv", "Wi", "Wo"), "layers", ("embeddings",)),
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "llama": _DECODER,
    "t5": Family(_T5_TARGETS, "encoder.block", ("shared",), model_class="T5EncoderModel"),
    "mt5": Family(_T5_TARGETS, "encoder.block", ("shared",), model_class="MT5EncoderModel"),
}
