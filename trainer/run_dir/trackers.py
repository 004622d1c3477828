"""Trackers of a run's numbers beside logs.jsonl, on rank 0. A tracker has scalars(values, step) and close()."""

import hashlib
import importlib.metadata
import os
import threading
from pathlib import Path

from data_prep.common.environment import client_problems, proxy_note
from data_prep.common.errors import BadInput, Failed
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


def check_tracking() -> None:
    """Raises BadInput if WANDB_PROJECT asks for a tracker that is not installed."""
    if not os.environ.get("WANDB_PROJECT"):
        return
    try:
        importlib.metadata.version("wandb")
    except importlib.metadata.PackageNotFoundError:
        mend = "pip install 'embedfleet[wandb]', or unset it"
        raise BadInput(f"WANDB_PROJECT is set, but wandb is not installed: {mend}") from None


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
        run_id = hashlib.sha256(f"{run_dir.resolve()} {run['started']}".encode()).hexdigest()[:12]
        try:
            self._run = wandb.init(
                project=os.environ["WANDB_PROJECT"], name=run["config"]["run_name"], dir=str(run_dir), id=run_id,
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
