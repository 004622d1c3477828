"""watch.blend: what cannot be blended is refused before training, with the reason and the mend."""

import pytest

from data_prep.common.files import write_json
from tests import tiny
from tests.end_to_end.runs import write_run
from tests.unit.trainer.blending.conftest import write_set
from tests.unit.trainer.evaluation.test_evaluate import pairs, write_rows
from trainer.config.loading import load_config, parse_config
from trainer.planner.plan import PLAN_VERSION
from trainer.preflight.evaluation import check_watch, without_effect
from trainer.preflight.inputs import Inputs
from trainer.run_dir.record import check_resumable, describe_run


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    shards = tiny.shards(folder / "split", 82, eval_fraction=0.2)
    scored = write_rows(folder / "scored.jsonl", pairs(3, 30))
    return {"scored": scored, "split": shards, "general": write_set(folder / "general", 12)}


@pytest.fixture
def inputs(tmp_path, files):
    def of(*overrides, train="split"):
        paths = [text.format(**files) for text in overrides]
        return Inputs(load_config(write_run(tmp_path, "m", files.get(train, train)), ["watch.blend=auto", *paths]))

    return of


REFUSED = {
    ("data.eval=null",): "watch.metric: nDCG@10 needs data.eval, which is off; name a retrieval set, or leave out "
    "watch.blend",
    ("data.eval={scored}",): "scored.jsonl does not measure it, but spearman, pearson; name a retrieval set, or leave "
    "out watch.blend",
    ("data.eval={scored}", "watch.metric=spearman"): "watch.blend: spearman (watch.metric) is of scored pairs and has "
    "no value for a single query",
    ("watch.metric=train_loss",): "watch.blend: queries choose the share, and with watch.metric=train_loss none choose",
    ("data.general={scored}",): "has scored pairs, which have no values of single queries to bound the loss by",
    (
        "data.general={general}",
        "watch.metric=general/nDCG@10",
    ): "watch.blend: watch.metric=general/nDCG@10 would choose by the set that bounds the loss",
    ("model.finetune=lora", "model.lora.start=adapter"): "watch.blend: the scale of an adapter leads to the bare base, "
    "and not to model.lora.start, where training begins; merge adapter (python -m trainer.merge)",
}


@pytest.mark.parametrize("settings", REFUSED, ids=" ".join)
def test_what_cannot_be_blended_is_refused_with_a_mend(inputs, settings):
    with pytest.raises(ValueError) as caught:
        check_watch(inputs(*settings))
    (problem,) = caught.value.problems
    assert REFUSED[settings] in problem and "or leave out watch.blend" in problem


def test_every_reason_is_listed_at_once(inputs):
    with pytest.raises(ValueError) as caught:
        check_watch(inputs("watch.metric=train_loss", "model.finetune=lora", "model.lora.start=a"))
    assert len(caught.value.problems) == 2


def test_shards_without_an_eval_split_are_refused(inputs, tiny_shards):
    with pytest.raises(ValueError, match="the shards have no eval split, which is not there; name a retrieval set"):
        check_watch(inputs(train=tiny_shards))


@pytest.mark.parametrize("settings", [(), ("watch.metric=MAP",), ("data.general={general}",), ("model.finetune=lora",)])
def test_a_retrieval_set_is_enough_and_an_unbound_choice_is_told(inputs, settings):
    opened = inputs(*settings)
    check_watch(opened)
    bound = opened.config.data.general is not None
    assert any(line.startswith("watch.blend: without data.general") for line in without_effect(opened)) != bound


@pytest.mark.parametrize(("value", "read"), [("auto", "auto"), ("off", None), (False, None), (None, None)])
def test_off_is_written_in_yamls_ways(value, read):
    values = {"output_dir": "o", "model": {"path": "m"}, "data": {"train": "d"}, "watch": {"blend": value}}
    assert parse_config(values, "run.json").watch.blend == read


@pytest.mark.parametrize("value", [True, "on", 0.5, []])
def test_another_value_is_refused(value):
    values = {"output_dir": "o", "model": {"path": "m"}, "data": {"train": "d"}, "watch": {"blend": value}}
    with pytest.raises(ValueError, match=r"watch\.blend.*auto"):
        parse_config(values, "run.json")


def test_a_resumed_run_may_leave_it_out(tmp_path, inputs):
    config = inputs().config
    write_json(tmp_path / "run.json", describe_run(config, {}, "print", {"version": PLAN_VERSION}))
    without = config.model_copy(update={"watch": config.watch.model_copy(update={"blend": None})})
    check_resumable(tmp_path, without, "print")
    other = config.model_copy(update={"watch": config.watch.model_copy(update={"metric": "MAP"})})
    with pytest.raises(ValueError, match="watch.metric: 'nDCG@10' in run.json"):
        check_resumable(tmp_path, other, "print")
