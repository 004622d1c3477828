"""data.eval: null, however it is written, trains without evaluation; settings that need one are refused or named."""

import json

import pytest
import yaml

from data_prep.common.errors import BadInput
from tests import tiny
from tests.end_to_end.runs import events, write_run
from trainer.__main__ import main
from trainer.config.loading import load_config
from trainer.frontends.auto_shards import as_yaml
from trainer.frontends.command_line import parse
from trainer.frontends.flags import from_flags
from trainer.frontends.python_api import EmbedderFineTuner, FineTuningConfig
from trainer.preflight.inputs import Inputs

OFF = ["null", "~", "", "[]", "{}", "none", "None", "NULL", "off", "no", "false", '""']


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Shards with an eval split."""
    return tiny.shards(tmp_path_factory.mktemp("shards") / "s", 82, eval_fraction=0.2)


@pytest.fixture
def run(tmp_path, tiny_bert, split, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_run(tmp_path, tiny_bert, split, max_steps=1, epochs=1)


@pytest.mark.parametrize("text", OFF)
def test_an_override_turns_evaluation_off(run, text):
    config = load_config(run, [f"data.eval={text}"])
    assert config.data.eval is False and Inputs(config).eval_paths == {}
    assert Inputs(load_config(run)).eval_paths == {"": load_config(run).data.train}, "the eval split without it"


@pytest.mark.parametrize("text", ["", " null", " ~", " none", " []", " false", " off", ' ""'])
def test_yaml_turns_evaluation_off(run, text):
    values = json.loads(run.read_text())
    file = run.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(values).replace("data:\n", f"data:\n  eval:{text}\n"))
    config = load_config(file)
    assert config.data.eval is False
    file.write_text(as_yaml(config))
    assert load_config(file) == config, "and is written so that it is read alike"


@pytest.mark.parametrize("value", [None, [], "none", False])
def test_json_turns_evaluation_off(run, value):
    values = json.loads(run.read_text())
    values["data"]["eval"] = value
    run.write_text(json.dumps(values))
    assert load_config(run).data.eval is False


def test_flags_and_python_turn_evaluation_off(run, tiny_bert, capsys):
    (run.parent / "rows.jsonl").write_text('{"question": "w1", "answer": "w2"}\n')
    flags = ["--model_name_or_path", str(tiny_bert), "--train_dataset", "rows.jsonl", "--output_dir", "o"]
    entry = from_flags(parse([*flags, "data.eval=null"]))
    assert entry.config.data.eval is False and not any("eval" in note for note in entry.notes)
    assert from_flags(parse(flags)).config.data.eval is None
    [note] = [n for n in from_flags(parse([*flags, "--eval_fraction", "0.1", "data.eval=null"])).notes if "eval" in n]
    assert note.startswith("--eval_fraction 0.1 keeps documents out of training, and data.eval is off")
    config = FineTuningConfig(str(tiny_bert), "rows.jsonl", "o", overrides=["data.eval=none"])
    assert EmbedderFineTuner(config)._translate().config.data.eval is False


@pytest.mark.parametrize("value", ["true", "[a, b]", "5", "{a: b}"])
def test_what_is_neither_a_set_nor_off_is_refused(run, value):
    with pytest.raises(BadInput, match="data.eval") as error:
        load_config(run, [f"data.eval={value}"])
    assert len(error.value.problems) == 1 and "null turns it off" in str(error.value)


def test_other_sets_are_left_out_in_the_same_words_and_kept_if_named(run, split):
    for text in OFF:
        named = [f"data.general={text}", f"sources.train.eval={text}"]
        config = load_config(run, named)
        assert config.data.general is None and config.sources["train"].eval is None
    own = Inputs(load_config(run, ["data.eval=null", f"data.general={split}"]))
    assert own.eval_paths == {"general": str(split)}


def test_a_run_without_evaluation(run, capsys):
    command = ["--config", str(run), "data.eval=null"]
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "evaluation: none (data.eval is off)" in shown and "choose the best model" not in shown
    assert main(command) == 0
    assert "evaluation after step" not in capsys.readouterr().err
    out = run.parent / "out"
    assert (
        events(out, "evaluation") == []
        and json.loads((out / "run.json").read_text())["config"]["data"]["eval"] is False
    )
    assert main([*command, "--resume"]) == 0, "finished"


def test_a_dry_run_says_which_queries_choose_the_best_model(run, capsys):
    dry = ["--config", str(run), "--dry-run", "train.device=cpu"]
    line = "queries, fewer than 100: the same ones choose the best model"
    assert main(dry) == 0 and line in capsys.readouterr().out
    assert main([*dry, "watch.metric=train_loss"]) == 0 and line not in capsys.readouterr().out


ASKING = {"watch.patience=1": "or leave out watch.patience"}


@pytest.mark.parametrize("setting", ASKING)
def test_what_needs_an_evaluation_is_refused_with_the_mend(run, capsys, setting):
    assert main(["--config", str(run), "--dry-run", "data.eval=null", setting]) == 2
    said = capsys.readouterr().err
    assert "watch.metric: nDCG@10 needs data.eval, which is off; name a set, or set watch.metric=train_loss" in said
    assert ASKING[setting] in said
    assert main(["--config", str(run), "--dry-run", "data.eval=null", setting, "watch.metric=train_loss"]) == 0


IDLE = {
    "watch.metric=MAP": "watch.metric changes nothing: MAP is not measured (data.eval is off)",
    "watch.keep_last=true": "watch.keep_last changes nothing: nDCG@10 is not measured (data.eval is off)",
    "watch.every_steps=2": "watch.every_steps changes nothing: there is no evaluation (data.eval is off)",
    "watch.min_delta=0.1": "watch.min_delta changes nothing: nDCG@10 is not measured (data.eval is off)",
    "data.ignore_identical_ids=true": "data.ignore_identical_ids changes nothing: there is no evaluation",
}


@pytest.mark.parametrize("setting", IDLE)
def test_what_then_changes_nothing_is_named(run, capsys, setting):
    assert main(["--config", str(run), "--dry-run", "data.eval=null", setting]) == 0
    assert capsys.readouterr().out.count(IDLE[setting]) == 1
    assert main(["--config", str(run), "--dry-run", setting]) == 0
    assert "changes nothing" not in capsys.readouterr().out


def test_a_run_of_an_older_version_that_said_null(run, capsys):
    """It evaluated on the eval split: its run.json says null, as that of a run without the key."""
    assert main(["--config", str(run)]) == 0
    record = run.parent / "out" / "run.json"
    began = json.loads(record.read_text())
    assert "eval" not in began["config"]["data"]
    began["config"]["data"]["eval"] = None
    record.write_text(json.dumps(began))
    capsys.readouterr()
    assert main(["--config", str(run), "data.eval=null", "--resume"]) == 2
    assert "data.eval: the run evaluates on the eval split of data.train" in capsys.readouterr().err
    assert main(["--config", str(run), "--resume"]) == 0
