"""A step of training with every row of docs/reference/migrate.md: python -m tests.soak.migrate. One JSON line per row.

All in one process, on a tiny BERT and generated rows. Exit code 1 where a run fails.
"""

import json
import sys
import tempfile
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

from tests import tiny
from tests.end_to_end.runs import events, write_run
from tests.end_to_end.test_migrate import ROWS, filled, make_places
from trainer.__main__ import main


def run() -> int:
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = make_places(folder, tiny.model(folder / "M"), tiny.shards(folder / "S", 82))
        for number, (subject, theirs, ours) in enumerate(ROWS):
            here = folder / str(number)
            here.mkdir()
            run_file = write_run(here, places["M"], places["S"], epochs=1)
            asked, said = filled(ours, places), StringIO()
            if not any(text.startswith("train.max_steps=") for text in asked):
                asked.append("train.max_steps=1")
            with redirect_stderr(said):
                code = main(["--config", str(run_file), *asked])
            out = Path(places["OUT"]) if "output_dir=OUT" in ours else here / "out"
            loss = events(out)[0]["loss"] if code == 0 else said.getvalue()
            row = {"subject": subject, "argument": theirs, "run file": ours, "code": code, "loss": loss}
            print(json.dumps(row), flush=True)
            failed += code != 0 or not isinstance(loss, float)
    print(json.dumps({"rows": len(ROWS), "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run())
