"""A run file of any types: what is written is read again as the same run, anything else is refused in words."""

import json

import pytest

from data_prep.common.errors import BadInput
from trainer.config.loading import load_config

LEAST = {"output_dir": "o", "model": {"path": "M"}, "data": {"train": "t"}}


def write(folder, values) -> str:
    path = folder / "run.json"
    path.write_text(json.dumps(values))
    return str(path)


@pytest.mark.parametrize("empty", ["run_name", "train", "loss", "sources", "watch"])
def test_a_key_that_is_null_has_its_default(tmp_path, empty):
    assert load_config(write(tmp_path, LEAST | {empty: None})) == load_config(write(tmp_path, LEAST))


def test_a_run_without_a_name_is_read_again_from_its_record(tmp_path):
    config = load_config(write(tmp_path, LEAST))
    assert load_config(write(tmp_path, config.model_dump(mode="json"))) == config


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"model": True}, "model is a section"),
        ({"output_dir": True}, "output_dir: true is no number or text"),
        ({"sources": {"a": True}}, "sources.a is a section"),
        ({"train": {"epochs": True}}, "train.epochs: true is no number or text"),
        ({"model": []}, "model is a section"),
    ],
)
def test_a_value_of_another_type_is_named(tmp_path, values, problem):
    with pytest.raises(BadInput, match=problem):
        load_config(write(tmp_path, LEAST | values))


@pytest.mark.parametrize("value", ["!!float x", "!!timestamp x", "!!int ''", "!!binary é", "&a [*a]", "[" * 1500])
def test_a_tag_or_alias_that_fits_nothing_is_no_traceback(tmp_path, value):
    with pytest.raises(BadInput, match=r"optim.lr"):
        load_config(write(tmp_path, LEAST), [f"optim.lr={value}"])
    path = tmp_path / "run.yaml"
    path.write_text(f"output_dir: o\nmodel: {{path: M}}\ndata: {{train: t}}\noptim: {{lr: {value}}}\n")
    with pytest.raises(BadInput):
        load_config(path)
