"""The longest text of a folder that states no length, for every way of counting positions."""

import json

import pytest

from data_prep.texts.tokenizer_rules import AFTER_PADDING, position_limit, read_text_rules


@pytest.mark.parametrize("settings, limit", [
    ({"model_type": "bert", "max_position_embeddings": 512}, 512),
    ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
    ({"model_type": "data2vec-text", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
    ({"model_type": "xlm-roberta-xl", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
    ({"model_type": "longformer", "max_position_embeddings": 4098, "pad_token_id": 1}, 4096),
    ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 3}, 510),
    ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 0}, 512),  # as it has always been
    ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 7}, 512),
    ({"model_type": "esm", "max_position_embeddings": 1026, "pad_token_id": 1}, 1024),
    ({"model_type": "esm", "max_position_embeddings": 1026, "position_embedding_type": "rotary"}, 1026),
    ({"model_type": "gpt2", "n_positions": 1024}, 1024),
    ({"model_type": "t5", "n_positions": 512}, None),  # its positions are relative
])  # fmt: skip
def test_a_text_is_no_longer_than_the_positions_behind_the_padding_id(settings, limit, tmp_path):
    assert position_limit(settings) == limit
    if limit:
        (tmp_path / "config.json").write_text(json.dumps(settings))
        rules, notes = read_text_rules(tmp_path, None, str)
        assert rules.max_len == limit and len(notes) == 2


def small(kind: str):
    """A random model of a family with 34 positions, whose padding id is 4."""
    from transformers import AutoConfig, AutoModel

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    size |= {"attention_window": [4]} if kind == "longformer" else {}
    size |= {"languages": ["en_XX"], "default_language": "en_XX"} if kind == "xmod" else {}
    size |= {"entity_vocab_size": 8, "entity_emb_size": 16} if kind == "luke" else {}
    config = AutoConfig.for_model(kind, vocab_size=50, max_position_embeddings=34, pad_token_id=4, **size)
    return AutoModel.from_config(config).eval()


# The others of the table take boxes beside the tokens, or are rotary by choice.
@pytest.mark.parametrize("kind", [k for k in AFTER_PADDING if k not in ("lilt", "layoutlmv3", "markuplm", "esm")])
def test_that_many_tokens_fit_and_one_more_does_not(kind):
    import torch

    model = small(kind)
    longest = position_limit(model.config.to_dict())
    tokens = torch.full((1, longest + 1), 9)
    with torch.no_grad():
        model(input_ids=tokens[:, :longest], attention_mask=torch.ones(1, longest, dtype=torch.long))
        if kind != "mpnet":
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=tokens, attention_mask=torch.ones(1, longest + 1, dtype=torch.long))
