"""Where the numbers of a run go beside logs.jsonl. A tracker has scalars(values, step) and close(); rank 0 has them."""

import hashlib
import importlib.metadata
import os
import threading
from pathlib import Path

from data_prep.common.errors import BadInput, Failed
from data_prep.common.secrets import secret, without

KEY = "WANDB_API_KEY"


class TensorBoard:
    """OUT/runs/, always. Raises OSError where the disk does not take it."""

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
    """TensorBoard writes in a thread of its own, whose error the next write raises; its traceback says no more."""
    before = threading.excepthook

    def hook(args) -> None:
        if not type(args.thread).__module__.startswith("tensorboard."):
            before(args)

    threading.excepthook = hook


def check_tracking() -> None:
    """Raises BadInput where WANDB_PROJECT asks for a tracker that is not installed."""
    if not os.environ.get("WANDB_PROJECT"):
        return
    try:
        importlib.metadata.version("wandb")
    except importlib.metadata.PackageNotFoundError:
        raise BadInput(
            "WANDB_PROJECT is set, but wandb is not installed: pip install 'embedfleet[wandb]', or unset it"
        ) from None


class WeightsAndBiases:
    """The project that WANDB_PROJECT names, with WANDB_MODE=offline in OUT/wandb/. A resumed run goes on under its id.

    Nothing of the machine goes along but what wandb samples of its load: no code, git remote, console or requirements.
    """

    def __init__(self, run_dir: Path, config: dict, started: str):
        """started: of run.json; with the run directory it makes the run's id."""
        import wandb

        key = secret(KEY)
        settings = wandb.Settings(
            api_key=key, console="off", silent=True, disable_git=True, disable_code=True, x_save_requirements=False,
            x_disable_machine_info=True,
        )  # fmt: skip
        run_id = hashlib.sha256(f"{run_dir.resolve()} {started}".encode()).hexdigest()[:12]
        try:
            self._run = wandb.init(
                project=os.environ["WANDB_PROJECT"], name=config["run_name"], dir=str(run_dir), id=run_id,
                resume="allow", config=config, settings=settings,
            )  # fmt: skip
        except wandb.errors.Error as error:
            reason = without(str(error).splitlines()[0], key)
            mend = f"set {KEY}, or WANDB_MODE=offline, or unset WANDB_PROJECT"
            raise Failed(f"Weights & Biases did not take the run ({reason}); {mend}") from None

    def scalars(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()
