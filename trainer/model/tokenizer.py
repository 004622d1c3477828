"""Tokenizers: loading them, checking them, token ids of texts."""

from pathlib import Path

from torch import nn

from data_prep.common.errors import BadInput
from data_prep.texts.tokenizer_rules import read_object
from trainer.config.sections import ModelConfig
from trainer.model_folder.files import fetch
from trainer.model_folder.spec import ModelSpec


def load_tokenizer(config: ModelConfig, folder: str):
    """Loads the fast tokenizer of the folder or of model.tokenizer (a slow one reports no cuts). Raises BadInput."""
    from transformers import AutoTokenizer

    key, source = ("model.tokenizer", fetch(config.tokenizer)) if config.tokenizer else ("model.path", folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=config.trust_remote_code)
    except Exception as error:
        raise BadInput(f"{key}: {source} has no usable tokenizer ({type(error).__name__}: {error})") from None
    if not tokenizer.is_fast:
        raise BadInput(f"{key}: {source} has no fast tokenizer (tokenizer.json); convert it with transformers")
    if read_object(Path(folder) / "sentence_bert_config.json").get("do_lower_case"):
        _lower(tokenizer)
    if config.append_eos:
        _append_eos(tokenizer, f"{key}: {source}")
    if tokenizer.pad_token is None:  # decoders: training pads by itself, but no one else encodes a batch without
        tokenizer.pad_token = _any_token(tokenizer)
    return tokenizer


def _any_token(tokenizer) -> str:
    """Returns a token to pad with; the attention mask keeps it out of every embedding."""
    special = (tokenizer.eos_token, tokenizer.unk_token, tokenizer.sep_token, tokenizer.bos_token)
    return next(filter(None, special), None) or tokenizer.convert_ids_to_tokens(0)


def _lower(tokenizer) -> None:
    """Makes the tokenizer itself lower-case texts, as sentence-transformers does for such a folder."""
    from tokenizers.normalizers import Lowercase, Sequence

    own = tokenizer.backend_tokenizer.normalizer
    tokenizer.backend_tokenizer.normalizer = Sequence([Lowercase(), own]) if own else Lowercase()


def _append_eos(tokenizer, where: str) -> None:
    """Makes the tokenizer itself append EOS to every text, so that an exported folder always does."""
    from tokenizers.processors import Sequence, TemplateProcessing

    eos = tokenizer.eos_token
    if eos is None:
        raise BadInput(f"model.append_eos: the tokenizer of {where} has no EOS token")
    if _ends_in_eos(tokenizer):
        return
    own = tokenizer.backend_tokenizer.post_processor
    added = TemplateProcessing(single=f"$A {eos}", special_tokens=[(eos, tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = Sequence([own, added]) if own else added


def _ends_in_eos(tokenizer) -> bool:
    return tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]


def eos_notes(tokenizer, spec: ModelSpec) -> list[str]:
    """Returns a line where the last token is pooled and is not an EOS."""
    if spec.pooling != "last" or _ends_in_eos(tokenizer):
        return []
    return ["pooling last: the tokenizer ends no text in EOS, so the text's own last token is taken (model.append_eos)"]


def padding_notes(tokenizer, folder: str) -> list[str]:
    """Returns a line where load_tokenizer has chosen the token to pad with."""
    files = [read_object(Path(folder) / name) for name in ("tokenizer_config.json", "special_tokens_map.json")]
    if any(file.get("pad_token") for file in files) or tokenizer.pad_token != _any_token(tokenizer):
        return []
    return [f"padding: the tokenizer has no padding token; {tokenizer.pad_token!r} is written as one (it is masked)"]


def check_vocabulary(tokenizer, backbone: nn.Module, config: ModelConfig) -> None:
    largest, rows = max(tokenizer.get_vocab().values()), backbone.get_input_embeddings().num_embeddings
    if largest >= rows:
        raise BadInput(
            f"model.tokenizer: {config.tokenizer} has token ids up to {largest}, but {config.path} knows {rows} tokens"
        )


def prompt_tokens(prompt: str, tokenizer) -> int:
    """Counts the first tokens of a text that its prompt takes, as sentence-transformers does: those of the prompt by
    itself, special ones before it included, a special one behind it not. 0 without a prompt.

    Where white space ends the prompt and the tokenizer gives it to the next word, that is one token too many; the count
    is kept, because the exported folder is pooled by it elsewhere.
    """
    if not prompt:
        return 0
    ids = tokenizer(prompt)["input_ids"]
    return len(ids) - (ids[-1:] != [] and ids[-1] in tokenizer.all_special_ids)


def prompt_notes(tokenizer, spec: ModelSpec) -> list[str]:
    """Returns a line per prompt that is not pooled and ends in a space that has a token only without a text."""
    rules, own = spec.rules, spec.own_prompts.named.values()
    prompts = [] if spec.pool_prompt else dict.fromkeys([rules.query_prompt, rules.passage_prompt, *own])
    counted = [text for text in prompts if text.endswith(" ")]
    joined = [text for text in counted if prompt_tokens(text, tokenizer) > prompt_tokens(text.rstrip(" "), tokenizer)]
    fate = "is left out of the pooling too, as sentence-transformers does; end it without a space"
    return [f"pool_prompt: {text!r} ends in a space that joins a text's first word, which {fate}" for text in joined]


def tokenize(texts: list[str], prompt: str, max_len: int, tokenizer) -> tuple[list[list[int]], int]:
    """Returns token ids of prompt + text, truncated to max_len tokens, and the number of truncated texts."""
    ids, truncated = tokenize_each(texts, prompt, max_len, tokenizer)
    return ids, sum(truncated)


def tokenize_each(texts: list[str], prompt: str, max_len: int, tokenizer) -> tuple[list[list[int]], list[bool]]:
    """Returns what tokenize() does, and of each text whether it was truncated."""
    if not texts:
        return [], []
    encoded = tokenizer(
        [prompt + text for text in texts],
        truncation=True,
        max_length=max_len,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_overflowing_tokens=False,
    )
    # the fast tokenizer keeps the truncated rest beside each encoding
    return encoded["input_ids"], [bool(e.overflowing) for e in encoded.encodings]
