"""Trackers of a run's numbers beside logs.jsonl, on rank 0. A tracker has scalars(values, step) and close()."""

import hashlib
import importlib.metadata
import os
import posixpath
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.common.console import say
from data_prep.common.environment import client_problems, proxy_note
from data_prep.common.errors import Failed, first_line
from data_prep.common.files import check
from data_prep.common.secrets import secret, without
from data_prep.texts.tokenizer_rules import read_object

KEY = "WANDB_API_KEY"


class TensorBoard:
    """Writes OUT/runs/, in every run. Raises OSError if the disk does not take it."""

    def __init__(self, run_dir: Path, last_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "runs"), purge_step=last_step + 1 if last_step else None)
        _quieten_its_thread()

    def scalars(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def _quieten_its_thread() -> None:
    """Hides tracebacks of TensorBoard's own thread: the next write raises its error."""
    before = threading.excepthook

    def hook(args) -> None:
        if not type(args.thread).__module__.startswith("tensorboard."):
            before(args)

    threading.excepthook = hook


# variable that asks for a tracker -> packages, one of which brings it, and the extra of ours
ASKED = {"WANDB_PROJECT": (("wandb",), "wandb"), "MLFLOW_EXPERIMENT_NAME": (("mlflow-skinny", "mlflow"), "mlflow")}


def check_tracking() -> None:
    """Raises BadInput if a variable of the environment asks for a tracker that is not installed."""
    asked = {variable: of for variable, of in ASKED.items() if os.environ.get(variable)}
    missing = {variable: extra for variable, (packages, extra) in asked.items() if not any(map(_installed, packages))}
    mend = "is not installed: pip install 'embedfleet[{}]', or unset it"
    check([f"{variable} is set, but {extra} {mend.format(extra)}" for variable, extra in missing.items()])


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def asked_trackers(run_dir: Path) -> list:
    """Returns the trackers that the environment asks for. run_dir/run.json must exist. Raises BadInput and Failed."""
    kinds = {"WANDB_PROJECT": WeightsAndBiases, "MLFLOW_EXPERIMENT_NAME": MLflow}
    return [kind(run_dir) for variable, kind in kinds.items() if os.environ.get(variable)]


def _run_id(run_dir: Path, run: dict) -> str:
    """Returns what a run is called on trackers, the same when it is resumed."""
    return hashlib.sha256(f"{run_dir.resolve()} {run['started']}".encode()).hexdigest()[:12]


class WeightsAndBiases:
    """Logs to the project WANDB_PROJECT, with WANDB_MODE=offline into OUT/wandb/. A resumed run keeps its id.

    Of the machine only the load that wandb samples is sent: no code, git remote, console or requirements.
    """

    def __init__(self, run_dir: Path):
        import wandb

        run, key = read_object(run_dir / "run.json"), secret(KEY)
        settings = wandb.Settings(
            api_key=key, console="off", silent=True, disable_git=True, disable_code=True, x_save_requirements=False,
            x_disable_machine_info=True,
        )  # fmt: skip
        try:
            self._run = wandb.init(
                project=os.environ["WANDB_PROJECT"], name=run["config"]["run_name"], dir=str(run_dir),
                id=_run_id(run_dir, run),
                resume="allow", config=run["config"], settings=settings,
            )  # fmt: skip
        except (wandb.errors.Error, OSError, ValueError) as error:
            raise Failed(_not_taken(without(" ".join(str(error).split()), key))) from None

    def scalars(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


def _not_taken(reason: str) -> str:
    server = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    reasons = [reason, "; ".join(client_problems(server)) or proxy_note(server).strip(" ()")]
    mend = f"set {KEY}, or without a network WANDB_MODE=offline (`wandb sync` sends it later), or unset WANDB_PROJECT"
    return f"Weights & Biases did not take the run ({'; '.join(filter(None, reasons))}); {mend}"


class MLflow:
    """Logs to the experiment MLFLOW_EXPERIMENT_NAME: at MLFLOW_TRACKING_URI, else into OUT/mlruns.

    A resumed run goes on in its own, without repeating steps. A store that fails while the run trains gets no more,
    with one line on the screen. Sent are the run file and the numbers: no code, git state, user or usage statistics.
    """

    SECONDS, AT_ONCE, VALUE = 5.0, 100, 6000  # between sends; parameters in a call and characters of one, MLflow's own

    def __init__(self, run_dir: Path):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default tries a dead server for minutes
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (run_dir / "mlruns").resolve().as_uri()
        if uri.startswith("file:") or "://" not in uri:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 refuses folders without it
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        run = read_object(run_dir / "run.json")
        self._waiting, self._sent, self._failed = [], time.monotonic(), False
        try:
            self._client = MlflowClient(uri)
            self._id, self._last = self._open(
                os.environ["MLFLOW_EXPERIMENT_NAME"], _run_id(run_dir, run), run["config"]
            )
        except (MlflowException, OSError, ValueError) as error:
            mend = "mend MLFLOW_TRACKING_URI, or unset MLFLOW_EXPERIMENT_NAME"
            raise Failed(f"MLflow did not take the run at {_public(uri)} ({_reason(error)}); {mend}") from None

    def _open(self, experiment: str, name: str, config: dict) -> tuple[str, dict[str, int]]:
        """Returns the run's id, new or as it was begun, and the last step of each of its metrics."""
        from mlflow.entities import Param

        known = self._client.get_experiment_by_name(experiment)
        experiment_id = known.experiment_id if known else self._client.create_experiment(experiment)
        begun = self._client.search_runs([experiment_id], f"tags.embedfleet_run = '{name}'")
        if begun:
            self._client.update_run(begun[0].info.run_id, status="RUNNING")
            histories = {
                key: self._client.get_metric_history(begun[0].info.run_id, key) for key in begun[0].data.metrics
            }
            return begun[0].info.run_id, {key: max(one.step for one in points) for key, points in histories.items()}
        made = self._client.create_run(experiment_id, run_name=config["run_name"], tags={"embedfleet_run": name})
        params = [Param(_metric_name(key), str(value)[: self.VALUE]) for key, value in _flat(config)]
        for first in range(0, len(params), self.AT_ONCE):
            self._client.log_batch(made.info.run_id, params=params[first : first + self.AT_ONCE])
        return made.info.run_id, {}

    def scalars(self, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now, named = int(1000 * time.time()), {_metric_name(name): value for name, value in values.items()}
        new = {name: value for name, value in named.items() if step > self._last.get(name, -1)}
        self._waiting += [Metric(name, float(value), now, step) for name, value in new.items()]
        if time.monotonic() - self._sent > self.SECONDS:
            self._send()

    def _send(self) -> None:
        waiting, self._waiting, self._sent = self._waiting, [], time.monotonic()
        for first in range(0, len(waiting), self.AT_ONCE):
            self._try("numbers", self._client.log_batch, self._id, metrics=waiting[first : first + self.AT_ONCE])

    def close(self) -> None:
        self._send()
        self._try(
            "the end of the run", self._client.set_terminated, self._id, "FAILED" if sys.exc_info()[0] else "FINISHED"
        )

    def _try(self, what: str, call, *arguments, **named) -> None:
        if self._failed:
            return
        try:
            call(*arguments, **named)
        except Exception as error:  # of its store or its HTTP client: no reason to end the training
            self._failed = True
            say(f"MLflow did not take {what} ({_reason(error)}); it gets no more, logs.jsonl has all")


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields section.key and value of a nested run file."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _metric_name(name: str) -> str:
    """Returns a name that MLflow takes: nDCG@10 becomes nDCG_at_10, as MLflow names its own."""
    return posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", "/" + name.replace("@", "_at_")))[1:]


def _public(uri: str) -> str:
    """Returns an address without user and password."""
    return re.sub(r"//[^@/]*@", "//", uri)


def _reason(error: Exception) -> str:
    secrets = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("TOKEN", "PASSWORD"))
    return without(_public(first_line(error)), *secrets)
