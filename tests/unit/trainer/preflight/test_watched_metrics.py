"""watch.metric and watch.metrics name any metric that an evaluation set of the run measures; others are refused."""

import json
import re

import pytest

from tests import tiny
from tests.end_to_end.runs import events, write_run
from tests.unit.trainer.evaluation.test_evaluate import pairs, write_rows
from trainer.__main__ import main
from trainer.config.loading import load_config
from trainer.evaluation.watched import no_values, watched_names
from trainer.preflight.evaluation import check_watch, without_effect
from trainer.preflight.inputs import Inputs
from trainer.report import main as report
from trainer.reporting.model_card import story_of


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    labels = write_rows(folder / "labels.jsonl", pairs(4, 30, lambda share: int(share > 0.5)))
    shards = tiny.shards(folder / "split", 82, eval_fraction=0.2)
    return {"scored": write_rows(folder / "scored.jsonl", pairs(3, 30)), "labels": labels, "split": shards}


def inputs(tmp_path, model, shards, *overrides):
    return Inputs(load_config(write_run(tmp_path, model, shards, max_steps=2, epochs=1), overrides))


ACCEPTED = ["nDCG@5", "recall@20", "R-precision", "hit@3", "MRR", "spearman", "auc", "train_loss"]


@pytest.mark.parametrize("metric", ACCEPTED)
def test_any_metric_may_be_watched(tmp_path, files, metric):
    data = {"spearman": "scored", "auc": "labels"}.get(metric, "split")
    opened = inputs(tmp_path, "m", files["split"], f"watch.metric={metric}", f"data.eval={files[data]}")
    check_watch(opened)
    assert without_effect(opened) == []
    assert metric == "train_loss" or metric in watched_names(opened.config)


REFUSED = {
    "watch.metric=nDCG@1001": "watch.metric: nDCG@1001: the cut-off is a whole number from 1 to 1000",
    "watch.metric=recall": "watch.metric: recall: needs a cut-off, as in recall@10",
    "watch.metric=recal@10": "watch.metric: 'recal@10' is no metric. Did you mean 'recall@10'?",
    "watch.metric=cosine_ndcg@10": "watch.metric: 'cosine_ndcg@10' is no metric. Write watch.metric=nDCG@10.",
    "watch.metric=eval_cosine_recall@5": "'eval_cosine_recall@5' is no metric. Write recall@5.",
    "watch.metrics=[cosine_ndcg@5]": "watch.metrics: 'cosine_ndcg@5' is no metric. Write nDCG@5.",
    "watch.metrics=[nDCG@5,MAPP]": "watch.metrics: 'MAPP' is no metric. Did you mean 'MAP'?",
    "watch.metrics=[spearman]": "watch.metrics: spearman is of scored pairs, and no set has scores",
    "watch.metrics=[MAP,MAP]": "watch.metrics: MAP stands twice",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_no_set_measures_is_refused(tmp_path, files, setting):
    with pytest.raises(ValueError) as caught:
        check_watch(inputs(tmp_path, "m", files["split"], setting))
    assert REFUSED[setting] in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["data.eval=null"], "watch.eval_loss: is the loss on the eval split of data.train, but data.eval is off"),
        (["data.eval={TRAIN}"], "data.eval names another set; leave one out"),
        (["data.train={TRAIN}"], "watch.eval_loss: data.train has no eval split; shard with --eval-fraction 0.1"),
        (["data.eval={SPLIT}"], None),
        ([], None),
    ],
)
def test_the_loss_on_the_eval_split_needs_one(tmp_path, files, tiny_shards, settings, reason):
    paths = {"SPLIT": files["split"], "TRAIN": tiny_shards}
    settings = [text.format(**paths) for text in settings]
    opened = inputs(tmp_path, "m", files["split"], "watch.eval_loss=true", *settings)
    if reason is None:
        return check_watch(opened)
    with pytest.raises(ValueError, match=re.escape(reason)):
        check_watch(opened)


def test_the_metric_of_a_set_that_has_others_is_refused(tmp_path, files):
    setting = [f"data.general={files['labels']}", "watch.metric=general/nDCG@5"]
    with pytest.raises(ValueError, match="labels.jsonl does not measure it, but spearman, pearson, auc"):
        check_watch(inputs(tmp_path, "m", files["split"], *setting))


def test_a_default_metric_that_scored_pairs_lack_is_refused_only_where_it_decides(tmp_path, files):
    chosen = f"data.eval={files['scored']}"
    check_watch(inputs(tmp_path, "m", files["split"], chosen))
    with pytest.raises(ValueError, match="does not measure it, but spearman, pearson; name one of them, or set"):
        check_watch(inputs(tmp_path, "m", files["split"], chosen, "watch.patience=1"))
    said = "scored.jsonl does not measure nDCG@10 (watch.metric), so final/ will be the last model; set watch.metric to"
    (line,) = without_effect(inputs(tmp_path, "m", files["split"], chosen))
    assert said + " one of spearman, pearson, or to train_loss" in line
    told, line = without_effect(inputs(tmp_path, "m", files["split"], chosen, "watch.keep_last=true"))
    assert said in told and line.startswith("watch.keep_last changes nothing: nDCG@10 is not measured (")
    (line,) = without_effect(inputs(tmp_path, "m", files["split"], chosen, "watch.metric=MAP"))
    assert line.startswith("watch.metric changes nothing: MAP is not measured (") and "has no such metric" in line
    general = f"data.general={files['scored']}"
    (line,) = without_effect(inputs(tmp_path, "m", files["split"], general))
    assert line == "watch.tolerance changes nothing for data.general: it does not measure nDCG@10"


WHY = {
    ("split", "spearman"): "split does not measure spearman (watch.metric), but nDCG@10, ",
    ("scored", "nDCG@10"): "scored.jsonl does not measure nDCG@10 (watch.metric), but spearman, pearson",
    ("scored", "auc"): "scored.jsonl does not measure auc (watch.metric), but spearman, pearson",
    ("labels", "auc"): "labels.jsonl has scored pairs, and their metrics have no values of single queries",
    ("scored", "train_loss"): "scored.jsonl has scored pairs, and their metrics have no values of single queries",
}


@pytest.mark.parametrize(("name", "metric"), WHY)
def test_a_verdict_that_is_missing_says_why(tmp_path, files, name, metric):
    opened = inputs(tmp_path, "m", files["split"], f"data.eval={files[name]}", f"watch.metric={metric}")
    assert WHY[name, metric] in no_values(opened.eval_set(str(files[name])), opened.config)


def test_a_metric_list_without_a_set_changes_nothing(tmp_path, files):
    (line,) = without_effect(inputs(tmp_path, "m", files["split"], "data.eval=null", "watch.metrics=[MAP]"))
    assert line.startswith("watch.metrics changes nothing: there is no evaluation")


def test_the_default_metric_is_measured_beside_train_loss_because_the_verdict_needs_it(tmp_path, files):
    asked = "watch.metric=train_loss", "watch.metrics=[MAP]"
    assert watched_names(inputs(tmp_path, "m", files["split"], *asked).config) == ("MAP", "nDCG@10")


def test_a_run_that_watches_scored_pairs_and_logs_chosen_metrics(tmp_path, tiny_bert, files, capsys):
    run = write_run(tmp_path, tiny_bert, files["split"], max_steps=2, epochs=1)
    sets = [f"data.eval={files['labels']}", f"data.general={files['split']}"]
    watch = ["watch.metric=spearman", "watch.metrics=[auc,nDCG@3,recall@7]"]
    assert main(["--config", str(run), *sets, *watch]) == 0
    out = tmp_path / "out"
    logged = events(out, "evaluation")
    of_pairs = [event for event in logged if "source" not in event]
    of_general = [event for event in logged if event.get("source") == "general"]
    assert len(of_pairs) == len(of_general) == 2 and -1 <= of_pairs[0]["spearman"] <= 1
    assert {"auc", "spearman"} <= of_pairs[0].keys() and "pearson" not in of_pairs[0]
    assert {"nDCG@3", "recall@7"} <= of_general[0].keys() and not {"nDCG@10", "auc"} & of_general[0].keys()
    best = json.loads((out / "training_summary_report.json").read_text())["best"]
    assert best["metric"] == "spearman" and best["value"] == of_pairs[1]["spearman"]
    assert main(["--config", str(run), "--resume", *sets, watch[0]]) == 0, "others may be logged after all"
    page = tmp_path / "page.html"
    assert report([str(out), "--output", str(page), "--device", "cpu"]) == 0
    text = page.read_text()
    assert "scored pairs, which have no ranking to show" in text and "spearman" in text and "recall@7" in text
    after = story_of(out / "final").after
    assert after["spearman"] == of_pairs[1]["spearman"] and set(after) == {"auc", "spearman"}


def test_an_eval_split_of_graded_pairs_is_evaluated_by_itself(tmp_path, files):
    from data_prep.sharding.build import shard

    rows = write_rows(tmp_path / "rows.jsonl", [row | {"query": f"w{i}"} for i, row in enumerate(pairs(7, 40))])
    shard([rows], tmp_path / "graded", eval_fraction=0.5)
    opened = inputs(tmp_path, "m", tmp_path / "graded", "watch.metric=pearson", "watch.patience=1")
    check_watch(opened)
    data = opened.eval_sets[""]
    assert opened.eval_paths == {"": str(tmp_path / "graded")} and len(data.scores) > 1 and data.shards
