"""Slips of the fingers are understood, other words are not."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trainer.config.other_trainers import arguments
from trainer.config.spelling import misspelt, respelt
from trainer.config.unknown_keys import own_keys

LEAVES = sorted({key.rpartition(".")[2] for key in own_keys()})
SLIPS = {
    "temprature": "temperature", "tempurature": "temperature", "epoch": "epochs", "batchsise": "batch_size",
    "batch_sise": "batch_size", "lrr": "lr", "rl": "lr", "los": "loss", "max_step": "max_steps",
    "warmup_ration": "warmup_ratio",
    "max_gradnorm": "max_grad_norm", "querymax_len": "query_max_len", "gradient_checkpoiting": "gradient_checkpointing",
}  # fmt: skip
OTHERS = [
    "eval_steps", "save_steps", "min_steps", "revision", "lora", "output_dim", "eta", "tau", "query_min_len",
    "warmup_steps",    "log_steps", "top_k", "rank", "num_epochs", "decision", "min_grad_norm", "k", "x", "",
]  # fmt: skip


@pytest.mark.parametrize(("word", "meant"), SLIPS.items())
def test_a_slip_is_understood(word, meant):
    assert misspelt(word, [*LEAVES, "loss"]) == [meant]


@pytest.mark.parametrize("word", OTHERS)
def test_another_word_is_no_slip(word):
    assert misspelt(word, LEAVES) == []


def test_numbers_are_names():
    assert misspelt("zero4", ["zero1", "zero2"]) == [] == misspelt("zero", ["zero1"])
    assert misspelt("recal@10", ["recall@1", "recall@10", "recall@100"]) == ["recall@10"]
    assert misspelt("fp8", ["fp16", "bf16"]) == []


def test_no_key_of_ours_is_a_slip_of_another():
    for key in LEAVES:
        apart = {key, "metric", "metrics"} if key.startswith("metric") else {key}  # watch.metric is one of them
        assert misspelt(key, [other for other in LEAVES if other not in apart]) == []


def test_no_argument_of_another_trainer_is_a_slip_of_a_key_with_another_meaning():
    for entry in arguments():
        ours = {setting.key.rpartition(".")[2] for setting in entry.ours}
        for name in entry.theirs:
            assert {*misspelt(name, LEAVES)} <= ours | {name.rpartition(".")[2]}, name


@given(st.sampled_from(LEAVES), st.sampled_from(["upper", "hyphen", "camel", "none"]))
def test_a_respelling_is_found_whatever_its_case_and_hyphens(key, how):
    first, *others = key.split("_")
    spelt = {
        "upper": key.upper(), "hyphen": key.replace("_", "-"), "none": key.replace("_", ""),
        "camel": first + "".join(word.capitalize() for word in others),
    }[how]  # fmt: skip
    assert respelt(spelt, LEAVES) == [key]


@given(st.data())
def test_one_slip_in_a_long_word_is_found(data):
    """A letter left out, doubled, changed or exchanged with its neighbour, behind the first."""
    key = data.draw(st.sampled_from([key for key in LEAVES if min(map(len, key.split("_"))) > 4]))
    at = data.draw(st.integers(1, len(key) - 2))
    assume("_" not in key[at - 1 : at + 2])
    letter = data.draw(st.sampled_from("etaoinsr"))
    kinds = [key[:at] + key[at + 1 :], key[:at] + letter + key[at:], key[:at] + letter + key[at + 1 :]]
    slip = data.draw(st.sampled_from([*kinds, key[:at] + key[at + 1] + key[at] + key[at + 2 :]]))
    assert key in [*misspelt(slip, LEAVES), *respelt(slip, LEAVES)]


@given(st.text(), st.text())
def test_any_text_is_compared(one, other):
    assert misspelt(one, [other]) in ([], [other])
    assert misspelt(one, [one]) == [one]
