"""Older names in a model folder: every kind of rope, tokenizers, and what only the newer version can say."""

import json

import pytest

from trainer.model_folder.older_versions import add_older_names, least_version, with_older_names

PLAIN = {"rope_type": "default", "rope_theta": 1e6}
SLIDING = "sliding_attention"
YARN = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 16}
BY_LAYER = {"full_attention": {"rope_type": "default", "rope_theta": 8e4}, "sliding_attention": PLAIN}
ROPES = {
    "qwen3": ({"model_type": "qwen3", "rope_parameters": PLAIN}, {"rope_theta": 1e6}),
    "scaled": (
        {"model_type": "llama", "rope_parameters": YARN},
        {"rope_theta": 5e5, "rope_scaling": {k: v for k, v in YARN.items() if k != "rope_theta"}},
    ),
    "partly turned": (
        {"model_type": "stablelm", "rope_parameters": PLAIN | {"partial_rotary_factor": 0.25}},
        {"rope_theta": 1e6, "partial_rotary_factor": 0.25},
    ),
    "modernbert": (
        {"model_type": "modernbert", "rope_parameters": BY_LAYER, "layer_types": ["full_attention", SLIDING] * 2},
        {"global_rope_theta": 8e4, "local_rope_theta": 1e6, "global_attn_every_n_layers": 2},
    ),
    "gemma3": (
        {"model_type": "gemma3_text", "rope_parameters": BY_LAYER, "layer_types": [SLIDING, SLIDING, "full_attention"]},
        {"rope_theta": 8e4, "rope_local_base_freq": 1e6, "_sliding_window_pattern": 3},
    ),
    "none": ({"model_type": "bert"}, {}),
    "of another family, by layer": ({"model_type": "olmo3", "rope_parameters": BY_LAYER}, {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(ROPES))
def test_a_config_states_both_names_and_stays_so_when_it_is_read_again(kind):
    settings, older = ROPES[kind]
    both = with_older_names(settings)
    assert both == settings | older
    assert with_older_names(both) == both


def test_the_type_of_the_weights_and_a_config_in_a_config_are_named_twice_too():
    inner = {"model_type": "qwen3", "rope_parameters": PLAIN, "dtype": "bfloat16"}
    both = with_older_names({"model_type": "outer", "dtype": "float32", "text_config": inner, "other": {"dtype": "x"}})
    assert both["torch_dtype"] == "float32" and both["other"] == {"dtype": "x"}
    assert both["text_config"] == inner | {"rope_theta": 1e6, "torch_dtype": "bfloat16"}


def test_a_pattern_that_no_number_says_is_not_guessed():
    layers = ["full_attention", "full_attention", "sliding_attention", "full_attention"]
    settings = {"model_type": "modernbert", "rope_parameters": BY_LAYER, "layer_types": layers}
    assert "global_attn_every_n_layers" not in with_older_names(settings)
    assert least_version(settings, None) is None


@pytest.mark.parametrize("kind, bidirectional, version", [
    ("qwen3", False, "4.57"),
    ("qwen3", True, None),  # version 4 would read it causally
    ("scaled", False, "4.57"),
    ("modernbert", None, "4.57"),
    ("none", None, "4.57"),
    ("of another family, by layer", None, None),
])  # fmt: skip
def test_the_oldest_version_that_reads_a_folder_alike(kind, bidirectional, version):
    assert least_version(ROPES[kind][0], bidirectional) == version


def test_an_exported_folder_of_an_earlier_trainer_gets_a_tokenizer_that_both_have(tmp_path):
    path = tmp_path / "tokenizer_config.json"
    path.write_text(
        json.dumps({"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["[Q]"], "pad_token": "p"})
    )
    add_older_names(tmp_path)
    assert json.loads(path.read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["[Q]"], "pad_token": "p",
        "model_input_names": ["input_ids", "attention_mask"], "padding_side": "right",
    }  # fmt: skip
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    path.write_text(json.dumps(own))
    add_older_names(tmp_path)
    assert json.loads(path.read_text()) == own
