"""python -m tests.soak.supervision: a supervised run on real launchers is asked to stop, and writes a whole checkpoint.

CI does it with commands that train nothing, in tests/unit/launch/test_supervise.py.
"""

import json
import tempfile
from pathlib import Path

from tests import tiny
from tests.end_to_end.runs import losses, write_run
from tests.end_to_end.test_survival import steps_logged, supervised, wait_for


def check(folder: Path) -> None:
    model, shards = tiny.model(folder / "bert"), tiny.shards(folder / "shards", 82)
    run_file, out = write_run(folder, model, shards, epochs=500), folder / "out"
    process = supervised(run_file, "--max-restarts", "2")
    wait_for(lambda: steps_logged(out) >= 3, process)
    process.terminate()
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 75, said[-3000:]
    marker = json.loads((out / "requeue.json").read_text())
    assert marker == {"signal": "SIGTERM", "step": len(losses(out))}
    assert (out / f"checkpoint-step-{marker['step']}" / "complete.json").exists() and "restart" not in said
    print(f"stopped whole after step {marker['step']}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        check(Path(place))
