"""watch.blend: auto: a run ends between its base and its best model, on any engine, interrupted or not."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from data_prep.reading.retrieval_sets import load_set
from tests import forked, tiny
from tests.end_to_end.runs import events
from tests.unit.trainer.blending.conftest import write_set
from trainer.blending.blend import blend
from trainer.blending.choice import METRIC
from trainer.blending.rules import Rules
from trainer.config.sections import ModelConfig
from trainer.evaluation.measure import evaluate_folder
from trainer.inference.reading import read_alike
from trainer.reporting.facts import read_facts
from trainer.reporting.model_card import story_of
from trainer.reporting.page import write_report
from trainer.run_dir.queries import halves_of, read_values
from trainer.run_dir.verdict import describe

MODES = {
    "full": ({}, {"lr": 3e-3}),
    "lora": ({"finetune": "lora", "query_prompt": "w1 ", "query_max_len": 20}, {"lr": 2e-2}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with shards of 237 held-out queries, and a general set of 125: enough for halves."""
    folder = tmp_path_factory.mktemp("data")
    tiny.shards(folder / "shards", 460, eval_fraction=0.5)
    write_set(folder / "general", 100, 7)
    return folder


@pytest.fixture(scope="module")
def start(data, tiny_bert):
    """Writes a run file into a folder, and gives the command that runs it."""

    def command(folder, mode="full", *overrides: str, engine: str | None = None) -> list[str]:
        model, optim = MODES[mode]
        values = {
            "output_dir": str(folder / "out"),
            "model": {"path": str(tiny_bert)} | model,
            "data": {"train": str(data / "shards"), "general": str(data / "general")},
            "optim": optim,
            "train": {"batch_size": 16, "epochs": 2},
            "watch": {"blend": "auto", "metric": METRIC},
        }
        folder.mkdir(exist_ok=True)
        (folder / "run.json").write_text(json.dumps(values))
        flags = ["--engine", engine] if engine else []
        return ["-m", "trainer", "--config", str(folder / "run.json"), *flags, *overrides]

    return command


@pytest.fixture(scope="module")
def finished(tmp_path_factory, start):
    """Output folders of uninterrupted runs in one process, by mode."""
    folders = {}
    for mode in MODES:
        folder = tmp_path_factory.mktemp(mode)
        done = forked.run(*start(folder, mode))
        assert done.returncode == 0, done.both[-3000:]
        folders[mode] = folder / "out", done.stderr
    return folders


def weights(folder) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def same(one, other) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def result_of(out) -> dict:
    return json.loads((out / "final" / "blend.json").read_text())


@pytest.mark.parametrize("mode", MODES)
def test_final_is_what_the_command_would_blend_of_the_same_halves(tmp_path, finished, data, tiny_bert, mode):
    out, _ = finished[mode]
    verdict, result = json.loads((out / "verdict.json").read_text()), result_of(out)
    assert 0 < result["chosen"] < 1, "the test is about a model that lies between"
    final = verdict["final"]
    assert (final["model"], final["share"]) == ("blended", result["chosen"])
    sets = [load_set(str(data / name)) for name in ("shards", "general")]
    halves = [halves_of(part.query_ids, part.qrels).sides for part in sets]
    best = out / f"checkpoint-epoch-{final['epoch']}"
    models = [ModelConfig(path=str(path)) for path in (tiny_bert, best)]
    made = blend(*models, *sets, tmp_path / "blended", Rules(), "cpu", halves=halves)
    assert same(tmp_path / "blended", out / "final") and not same(best, out / "final")
    assert made["chosen"] == result["chosen"] and made["shares"] == result["shares"]

    (choosing, reporting), (_, general) = halves
    assert not {*choosing} & {*reporting}
    facts = json.loads((out / "queries" / "halves.json").read_text())
    assert (facts["choosing"], facts["reporting"]) == ([*choosing], [*reporting])
    rows = {row["share"]: row["domain"]["chooses"] for row in result["shares"] if not row["refused"]}
    assert result["chosen"] == min(rows, key=lambda share: (-rows[share], share))

    # the verdict is of final/, on the halves that had no part in the choice, against the run's own start
    after, before = read_alike(ModelConfig(path=str(out / "final")), ModelConfig(path=str(tiny_bert)), began=True)
    for data_set, queries, change in zip(sets, (reporting, general), (verdict["best"], verdict["general"])):
        for model, side in ((before, "base"), (after, "tuned")):
            per_query = evaluate_folder(model, data_set, "cpu")
            mean = sum(per_query[query][METRIC] for query in queries) / len(queries)
            assert change[side] == pytest.approx(mean, abs=1e-9)
        assert change["queries"] == len(queries)
    assert verdict["blend"]["share"] == result["chosen"]
    tuned = read_values(out, final["step"])[""]
    assert verdict["blend"]["tuned"]["tuned"] == pytest.approx(sum(tuned[q] for q in reporting) / len(reporting))


def test_log_card_report_and_screen_speak_of_the_blend(finished):
    out, said = finished["full"]
    verdict, result = json.loads((out / "verdict.json").read_text()), result_of(out)
    assert verdict == json.loads((out / "final" / "verdict.json").read_text())
    assert verdict == json.loads((out / "training_summary_report.json").read_text())["verdict"]
    (event,) = events(out, "blend")
    assert event["share"] == result["chosen"] and event["shares"] == result["shares"]
    (event,) = events(out, "verdict")
    assert verdict.items() <= event.items()
    lines = describe(verdict)
    assert f"final/ is a blend: share {result['chosen']:g} of the model of epoch" in lines[0]
    assert f"share {result['chosen']:g} was chosen" in lines[2] and all(line in said for line in lines)
    measured = re.findall(r"^share (\S+): nDCG@10", said, re.MULTILINE)
    assert measured == [f"{row['share']:g}" for row in sorted(result["shares"], key=lambda row: row["share"] % 1)]
    story = story_of(out / "final")
    rows = {row["share"]: row["domain"]["all"] for row in result["shares"]}
    assert story.after == rows[result["chosen"]] and story.before == pytest.approx(rows[0.0])
    facts = read_facts(out, None, None, "cpu")
    assert facts.comparison.table[METRIC]["tuned"] == pytest.approx(story.after[METRIC], abs=1e-9)
    page = write_report(facts)
    assert "Shares of the blend" in page and page.count("<td>in final/</td>") == 1
    columns = [(name, half) for name in ("domain", "general") for half in ("chooses", "reports")]
    for row in result["shares"]:
        values = "".join(f"<td>{row[name][half]:.4f}</td>" for name, half in columns)
        assert f"<td>{row['share']:g}</td>{values}" in page
    assert not list(out.glob("best-step-*")) and not list((out / "queries").glob("vectors-[1-9]*"))


def test_without_a_general_set_a_line_says_that_nothing_bounds_the_choice(tmp_path, start):
    done = forked.run(*start(tmp_path / "run", "full", "data.general=null", "train.max_steps=8", "train.epochs=1"))
    assert done.returncode == 0, done.both[-3000:]
    assert "no data.general, so what the tuned model forgot is neither measured nor bounded" in done.stderr
    assert result_of(tmp_path / "run/out")["general"] is None


@pytest.mark.parametrize(("engine", "mode"), [("ddp", "lora"), ("zero3", "full")])
def test_two_ranks_blend_as_one_process_does(tmp_path, start, data, tiny_bert, engine, mode):
    """final/ is that of one process' blend of the same checkpoint, to the last bit. With zero3 the average is final."""
    ema = ["optim.ema=0.5"] if engine == "zero3" else []
    more = ["train.epochs=1", "watch.keep_last=true", *ema]
    done = forked.run_ranks(2, *start(tmp_path / "two", mode, *more, engine=engine), timeout=600)
    assert done.returncode == 0, done.both[-4000:]
    out = tmp_path / "two/out"
    verdict, result = json.loads((out / "verdict.json").read_text()), result_of(out)
    assert 0 < result["chosen"] < 1 and verdict["final"]["share"] == result["chosen"]
    assert done.stderr.count("share 0.5: measuring on general") == 1, "rank 0 alone speaks"
    sets = [load_set(str(data / name)) for name in ("shards", "general")]
    halves = [halves_of(part.query_ids, part.qrels).sides for part in sets]
    models = [ModelConfig(path=str(path)) for path in (tiny_bert, out / "last")]  # the model of the only epoch
    made = blend(*models, *sets, tmp_path / "one", Rules(), "cpu", halves=halves)
    assert made["chosen"] == result["chosen"] and same(tmp_path / "one", out / "final")
    assert same(out / "last", out / "checkpoint-epoch-1") != bool(ema)


def test_killed_while_it_blends_and_resumed(tmp_path, start, finished):
    """No share is measured twice, and final/ has the same bytes; a finished run is left alone."""
    whole, _ = finished["full"]
    command = start(tmp_path / "run")
    killed = forked.start(command)
    killed.wait_until_it_says("share 0.2: measuring on general", 300)
    killed.kill()
    assert killed.wait() != 0
    out = tmp_path / "run/out"
    assert not (out / "final").exists() and (out / "final.measured.json").is_file()
    shutil.copytree(out, tmp_path / "copy/out")
    done = forked.run(*command, "--resume")
    assert done.returncode == 0, done.both[-3000:]
    again = re.findall(r"share (\S+): measuring on (\S+)", done.stderr)
    assert again[0] == ("0.2", "general") and ("0.3", "shards") in again
    assert same(out / "final", whole / "final") and result_of(out)["shares"] == result_of(whole)["shares"]
    done = forked.run(*command, "--resume")
    assert done.returncode == 0 and "this run is finished" in done.stderr and "measuring" not in done.stderr

    # the key may be another where the run goes on
    done = forked.run(*start(tmp_path / "copy"), "--resume", "watch.blend=off")
    assert done.returncode == 0, done.both[-3000:]
    out = tmp_path / "copy/out"
    assert "measuring" not in done.stderr and not (out / "final" / "blend.json").exists()
    final = json.loads((out / "verdict.json").read_text())["final"]
    assert final["model"] == "trained" and same(out / "final", out / f"checkpoint-epoch-{final['epoch']}")


def test_a_run_whose_best_model_is_the_one_before_training_blends_nothing(tmp_path, start):
    done = forked.run(*start(tmp_path / "run", "full", "optim.lr=0.5", "train.epochs=1"))
    assert done.returncode == 0, done.both[-3000:]
    assert "watch.blend: nothing is blended: verdict: " in done.stderr and "measuring" not in done.stderr
    assert not (tmp_path / "run/out/final/blend.json").exists()
