"""The promise: one process, two and three ranks, ddp and ZeRO 1, 2, 3 train the same batches to the same end."""

import json
import math

import pytest
import torch

from tests.launching import ROOT, run, torchrun
from tests.multiprocess.dense import dense_run
from tests.multiprocess.engine_worker import STEPS
from trainer.config import load_config

WORKER = str(ROOT / "tests" / "multiprocess" / "engine_worker.py")


@pytest.fixture(scope="module")
def setting(tmp_path_factory, tiny_bert, tiny_shards):
    """A run file and the dense reference. 82 rows in batches of 16: every sixth has 2 rows, none for a third rank."""
    run_file = tmp_path_factory.mktemp("engines") / "run.json"
    values = {
        "output_dir": "unused",
        "model": {"path": str(tiny_bert)},
        "data": {"train": str(tiny_shards)},
        "loss": {"temperature": 0.05},
        "optim": {"lr": 1e-3, "eps": 1e-6, "schedule": "constant", "warmup_ratio": 0, "max_grad_norm": 3.0},
        "train": {"batch_size": 16, "epochs": 10, "micro_batch_tokens": 200},
    }
    run_file.write_text(json.dumps(values))
    return run_file, dense_run(load_config(run_file), STEPS, extra=2)


def relative_error(got: dict, expected: dict) -> float:
    """Over all parameters as one vector: |got - expected| / |expected|."""
    assert got.keys() == expected.keys(), got.keys() ^ expected.keys()
    difference = math.sqrt(sum((got[k] - expected[k]).double().square().sum().item() for k in expected))
    return difference / math.sqrt(sum(expected[k].double().square().sum().item() for k in expected))


def gradient_of(step: int, tensors: dict) -> dict:
    return {n.split(".", 1)[1]: t for n, t in tensors["gradients"].items() if n.startswith(f"{step}.")}


def check_equal(got: dict, expected: dict, tolerance: float) -> None:
    error = relative_error(got, expected)
    assert error < tolerance, f"relative error {error:.2e} of the raw gradient"


CELLS = [("cpu", 1), ("ddp", 2), ("ddp", 3), ("zero1", 2), ("zero2", 2), ("zero3", 2), ("zero3", 3)]


@pytest.mark.parametrize(("engine", "processes"), CELLS, ids=[f"{e}-{n}" for e, n in CELLS])
def test_same_losses_and_raw_gradients_as_one_dense_process(setting, tmp_path, engine, processes):
    run_file, (losses, norms, gradients) = setting
    worker = [WORKER, str(run_file), engine, str(processes), str(tmp_path)]
    done = run(*worker) if processes == 1 else torchrun(processes, *worker)
    assert done.returncode == 0, done.both[-4000:]
    values = json.loads((tmp_path / "values.json").read_text())
    tensors = torch.load(tmp_path / "tensors.pt", weights_only=True)
    assert values["engine"] == engine
    if engine in ("cpu", "ddp"):  # counts, embeddings, keys, their gradient, one bucket of gradients, statistics
        assert set(values["calls"]) == {0 if processes == 1 else 6}
    check_equal(gradient_of(0, tensors), gradients[0], 1e-5)
    assert values["losses"] == pytest.approx(losses, abs=1e-4)
    assert values["norms"] == pytest.approx(norms, rel=1e-3)
    assert min(norms) < 3.0 < max(norms), "clipping must act in some steps and not in others"
    if processes > 1:  # the check above would see a wrong factor: here two are planted
        for step in (STEPS, STEPS + 1):
            with pytest.raises(AssertionError, match="relative error"):
                check_equal(gradient_of(step, tensors), gradients[step], 1e-5)
            assert relative_error(gradient_of(step, tensors), gradients[step]) > 0.4
