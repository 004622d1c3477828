"""The packages that a run imports: ours, not shadowed, and the user's own modules."""

import os
import sys
from pathlib import Path

from data_prep.common.errors import BadInput


def check_packages() -> None:
    """Raises BadInput where a folder named like one of our packages (in the working folder, say) hides it."""
    from importlib.util import find_spec

    home = Path(__file__).resolve().parent.parent.parent
    for name in ("launch", "trainer", "data_prep"):
        spec = find_spec(name)
        where = Path(next(iter(spec.submodule_search_locations or []), "nowhere")).resolve() if spec else None
        if where != home / name:
            raise BadInput(f"package {name!r} of embedfleet is shadowed by {where}; run from another folder")


def add_working_folder() -> None:
    """Makes a user's modules importable from the folder the command runs in, also by an installed command."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
