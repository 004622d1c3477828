"""Messages about truncated texts name whose limit it was: a key of the run file, or the model folder."""

import re

import pytest

from tests.end_to_end.runs import write_run
from trainer.__main__ import main
from trainer.config.sections import ModelConfig
from trainer.model_folder.spec import describe_lengths, read_spec

LIMITS = {
    "both of the folder": ({}, "queries to 32 tokens (the model folder), passages to 32 tokens (the model folder)"),
    "queries": (
        {"query_max_len": 5},
        "queries to 5 tokens (model.query_max_len), passages to 32 tokens (the model folder)",
    ),
    "both": (
        {"query_max_len": 5, "passage_max_len": 48},
        "queries to 5 tokens (model.query_max_len), passages to 48 tokens (model.passage_max_len)",
    ),
}


@pytest.mark.parametrize("case", LIMITS)
def test_the_owner_of_each_length(case, tiny_bert):
    asked, text = LIMITS[case]
    config = ModelConfig(path=str(tiny_bert), **asked)
    assert describe_lengths(config, read_spec(config, tiny_bert).rules) == text


def test_a_run_and_its_dry_run_name_the_owner(tmp_path, tiny_bert, tiny_shards, capfd):
    run = ["--config", str(write_run(tmp_path, tiny_bert, tiny_shards, max_steps=1)), "model.query_max_len=4"]
    owner = "queries to 4 tokens (model.query_max_len), passages to 32 tokens (the model folder)"
    assert main([*run, "--dry-run"]) == 0
    assert re.search(r"\d+ texts truncated: " + re.escape(owner), capfd.readouterr().out)
    assert main(run) == 0
    assert re.search(r"truncated \d+ of [\d,]+ texts: " + re.escape(owner), capfd.readouterr().err)
    assert main([run[0], run[1], "output_dir=other", "--dry-run"]) == 0
    assert " 0 texts truncated\n" in capfd.readouterr().out
