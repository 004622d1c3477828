"""The recipe: batches that the pairs bear, and numbers that a run file takes."""

import pytest

from trainer.config.loading import parse_config
from trainer.config.recipe import unusual
from trainer.config.recommended import EPOCHS, batch_size, recommend


@pytest.mark.parametrize(("pairs", "expected"), [(2, 2), (5, 4), (60, 16), (1600, 32), (10_000, 128), (10**7, 1024)])
def test_a_batch_is_no_larger_than_the_pairs_bear(pairs, expected):
    assert batch_size(pairs) == expected


@pytest.mark.parametrize("finetune", ["full", "lora", "qlora"])
@pytest.mark.parametrize("pairs", [100, 9_999, 10_000])
def test_a_run_file_takes_the_numbers_and_finds_none_unusual(finetune, pairs):
    advice = recommend(finetune, pairs, "cuda")
    values: dict = {"output_dir": "out", "model": {"path": "m", "finetune": finetune}, "data": {"train": "shards"}}
    for key, value in advice.values.items():
        section, _, name = key.partition(".")
        values.setdefault(section, {})[name] = value
    config = parse_config(values, "test")
    assert unusual(config, True, 1000) == [] and config.train.precision == "bf16"
    assert config.train.epochs == (EPOCHS if pairs < 10_000 else 1) and config.optim.lr == advice.lr
