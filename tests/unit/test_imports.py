"""Light packages stay light: no torch behind launch, config, planner and data preparation."""

import re

import pytest

from tests.launching import ROOT, run

LIGHT = (
    "launch.command, launch.doctor, launch.init, launch.nodes, launch.plan.plan, launch.slurm.submit, launch.machine, "
    "trainer.config.loading, trainer.config.compatibility, trainer.planner.from_config, trainer.preflight.check_run, "
    "trainer.model_folder.families, trainer.frontends.python_api, trainer.frontends.flat_json, "
    "trainer.train.early_stopping, data_prep.shards.folder, data_prep.sharding.build, data_prep.cluster.ray_workers"
)
HEAVY = {"torch", "transformers", "datasets", "ray"}


def test_importing_the_light_side_leaves_torch_unloaded():
    done = run("-c", f"import sys, {LIGHT}; heavy = {HEAVY} & set(sys.modules); assert not heavy, heavy")
    assert done.returncode == 0, done.both


@pytest.mark.parametrize("command", ["launch", "data_prep", "trainer"])
def test_help_answers_without_torch(command):
    code = (
        "import sys, runpy; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module('{command}', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.both


def test_help_of_launch_answers_at_once():
    code = "import sys; from launch.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    slow = "{'numpy', 'pydantic', 'trainer.config.sections'}"
    done = run("-c", f"{code}slow = {slow} & set(sys.modules); assert not slow, slow")
    assert done.returncode == 0, done.both


def test_imports_point_one_way():
    """launch -> trainer, data_prep; trainer -> data_prep; data_prep -> neither."""
    order = ["launch", "trainer", "data_prep"]
    for i, package in enumerate(order):
        for path in (ROOT / package).rglob("*.py"):
            used = set(re.findall(r"^\s*(?:from|import) (launch|trainer|data_prep)\b", path.read_text(), re.M))
            assert used <= set(order[i:]), f"{path} imports {used - set(order[i:])}"


@pytest.mark.parametrize(
    "package, folder, file", [("deepspeed", "trainer", "zero_engine.py"), ("ray", "data_prep", "ray_workers.py")]
)
def test_only_one_file_imports(package, folder, file):
    pattern = re.compile(rf"^\s*(from|import) {package}\b", re.M)
    assert {p.name for p in (ROOT / folder).rglob("*.py") if pattern.search(p.read_text())} == {file}
