"""Launches every accelerate config by hand, as a user does: python -m tests.soak.configs [NAME …]

Those whose device is not here must refuse to train on another, and so must command lines that accelerate falls back
from. See tests/end_to_end/test_configs.py.
"""

import sys
import tempfile
import time
from pathlib import Path

from tests import tiny
from tests.end_to_end.test_configs import ELSEWHERE, LAUNCHED, REFUSED, check, check_refused


def main(names: list[str]) -> int:
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, shards = tiny.model(folder / "bert"), tiny.shards(folder / "shards", 82)
        for name in names or [*LAUNCHED, *ELSEWHERE, *REFUSED]:
            (folder / name).mkdir()
            began = time.perf_counter()
            try:
                if name in REFUSED:
                    check_refused(name, folder / name, model, shards)
                else:
                    check(name, folder / name, model, shards, real=True)
                verdict = "its own world" if name in LAUNCHED else "refused, as it should be"
            except AssertionError as error:
                failed, verdict = failed + 1, f"FAIL: {str(error)[-2000:]}"
            print(f"{name:28} {time.perf_counter() - began:6.1f} s  {verdict}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
