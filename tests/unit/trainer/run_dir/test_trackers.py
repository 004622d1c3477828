"""MLflow gets what logs.jsonl has, once, also of a resumed run; a callback hears everything and changes nothing."""

import json
import os
import shutil
import sys

import pytest

from data_prep.common.errors import BadInput, Failed
from trainer.config.loading import parse_section
from trainer.run_dir import trackers
from trainer.run_dir.callbacks import import_callbacks
from trainer.run_dir.log import LOG, RunLog
from trainer.run_dir.trackers import check_tracking

CONFIG = {"run_name": "first", "model": {"path": "m", "lora": {}}, "sources": {"a b/..": {"query_prompt": "q" * 9000}}}
CALLBACKS = """
import random

class Hears:
    told = []
    def on_step(self, event):
        self.told.append(("step", event["step"], event["loss"], event["output_dir"]))
        event["loss"] = random.random()
        event["rows"].clear()
    def on_checkpoint(self, event):
        self.told.append(("checkpoint", event["step"], event["folder"]))
    def on_end(self, event):
        self.told.append(("end", event["folder"]))

class Fails:
    def on_evaluation(self, event):
        raise KeyError("no such metric\\nand more")

class Exits:
    def on_step(self, event):
        raise SystemExit(0)

class CannotBe:
    def __init__(self):
        raise OSError("no disk")
    def on_end(self, event):
        pass

class Misspelt:
    def on_steps(self, event):
        pass

class Silent:
    pass
"""


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    """The client's module, and a run directory that is asked to be tracked."""
    module = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'embedfleet[mlflow]'")
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "1" if name.endswith("RETRIES") else "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tiny")
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text(json.dumps({"started": "today", "config": CONFIG}))
    return module, out


def test_mlflow_has_every_number_once_also_of_a_resumed_run(mlflow, monkeypatch):
    module, out = mlflow
    monkeypatch.setattr(trackers.MLflow, "SECONDS", 0.0)
    for steps in ((1, 2, 3), (3, 4)):  # step 3 was made again
        log = RunLog(out, active=True)
        log.scalars("evaluation", {"nDCG@10": 0.25, "name": "x"}, 0)
        for step in steps:
            log.scalars("train", {"loss": 1 / step, "grad norm": 2}, step)
        log.close()
    client = module.MlflowClient((out / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("tiny")
    (run,) = client.search_runs([experiment.experiment_id])
    points = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    history = {key: [(one.step, one.value) for one in some] for key, some in points.items()}
    assert history == {
        "train/loss": [(step, 1 / step) for step in (1, 2, 3, 4)],
        "train/grad norm": [(step, 2.0) for step in (1, 2, 3, 4)],
        "evaluation/nDCG_at_10": [(0, 0.25)],
    }
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
    assert run.data.params["model.path"] == "m" and len(run.data.params) == 4
    assert max(map(len, run.data.params.values())) == 6000
    assert not any(name.startswith("mlflow.source") for name in run.data.tags), "of the machine nothing is sent"


def test_a_store_that_cannot_be_used_is_one_line(mlflow, tmp_path, monkeypatch, capsys):
    _, out = mlflow
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/file/mlruns")
    with pytest.raises(Failed, match="MLflow did not take the run at file://.*unset MLFLOW_EXPERIMENT_NAME"):
        RunLog(out, active=True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    log = RunLog(out, active=True)
    log.scalars("train", {"loss": 1.0}, 1)
    shutil.rmtree(out / "mlruns")
    log.close()  # training is over before it is seen
    said = capsys.readouterr().err
    assert said.count("MLflow did not take numbers (") == 1 and "logs.jsonl has all" in said


def test_trackers_that_are_asked_for_and_not_installed_are_refused_together(monkeypatch):
    for variable in trackers.ASKED:
        monkeypatch.setenv(variable, "tiny")
    monkeypatch.setattr(trackers, "_installed", lambda package: False)
    with pytest.raises(BadInput) as error:
        check_tracking()
    assert [problem.partition(" is set")[0] for problem in error.value.problems] == list(trackers.ASKED)
    assert "pip install 'embedfleet[mlflow]'" in error.value.problems[1]
    monkeypatch.setattr(trackers, "_installed", lambda package: package in ("wandb", "mlflow"))
    check_tracking()


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "told_of_runs.py").write_text(CALLBACKS)
    monkeypatch.delitem(sys.modules, "told_of_runs", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return "told_of_runs"


def test_a_callback_hears_every_event_in_order_and_changes_nothing(tmp_path, module):
    log = RunLog(tmp_path, active=True, callbacks=[f"{module}:Hears"])
    log.event("step", step=1, loss=0.5, rows=[1, 2])
    log.written(tmp_path / "checkpoint-step-1", 1)  # by the thread that writes
    log.event("warning", step=1, text="")
    log.event("step", step=2, loss=0.25, rows=[3])
    log.written(tmp_path / "checkpoint-epoch-1", 2)
    log.event("end", step=2)
    log.tell_end(2, tmp_path / "final")
    log.close()
    out, told = str(tmp_path), import_callbacks([f"{module}:Hears"])[f"{module}:Hears"].told
    assert told == [
        ("step", 1, 0.5, out), ("checkpoint", 1, f"{out}/checkpoint-step-1"), ("step", 2, 0.25, out),
        ("checkpoint", 2, f"{out}/checkpoint-epoch-1"), ("end", f"{out}/final"),
    ]  # fmt: skip
    steps = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [(one["loss"], one["rows"]) for one in steps if one["event"] == "step"] == [(0.5, [1, 2]), (0.25, [3])]
    RunLog(tmp_path / "nowhere", active=False, callbacks=[f"{module}:CannotBe"]).tell_end(2, tmp_path)  # other ranks


def test_what_a_callback_raises_is_one_line_that_names_it(tmp_path, module):
    log = RunLog(tmp_path, active=True, callbacks=[f"{module}:Hears", f"{module}:Fails", f"{module}:Exits"])
    with pytest.raises(Failed) as error:
        log.event("evaluation", step=7, loss=1)
    assert str(error.value).startswith(
        f"train.callbacks: {module}:Fails failed in on_evaluation, step 7 (KeyError: 'no such metric\\nand more')"
    )
    with pytest.raises(Failed, match="Exits failed in on_step, step 8 .SystemExit: 0"):
        log.event("step", step=8, loss=1, rows=[])
    log.close()
    with pytest.raises(Failed, match="CannotBe failed when it was made .OSError: no disk"):
        RunLog(tmp_path, active=True, callbacks=[f"{module}:CannotBe"])


def test_callbacks_that_cannot_be_are_refused_together(module):
    names = [f"{module}:{name}" for name in ("Misspelt", "Silent", "Missing")] + ["no_such_module:Any"]
    with pytest.raises(BadInput) as error:
        import_callbacks(names)
    wanted = (
        "has on_steps, which is never called. Did you mean 'on_step'? Known are on_start, on_step, on_evaluation,",
        "has none of the methods on_start,",
        "cannot be imported (AttributeError:",
        "cannot be imported (ModuleNotFound",
    )
    for name, problem, part in zip(names, error.value.problems, wanted, strict=True):
        assert problem.startswith(f"train.callbacks: {name} {part}")
    for wrong, part in (
        (["mine"], "'mine' is not of the form package.module:Class"),
        (["a:B"] * 2, "'a:B' stands twice"),
    ):
        with pytest.raises(BadInput, match=part):
            parse_section("train", {"callbacks": wrong}, "test")
