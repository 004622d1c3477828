"""`plan --after RUN`: the plan of a run beside what it logged, and `plan --machine`."""

import json

import pytest

from launch.__main__ import main
from launch.plan.hardware import GPUS, assumed, of_cpu, of_gpu, of_machine
from trainer.config.loading import load_config
from trainer.diagnosis.speed import fit
from trainer.train.train import train


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, tiny_bert, tiny_shards):
    folder = tmp_path_factory.mktemp("after")
    values = {"output_dir": str(folder / "run"), "model": {"path": str(tiny_bert)}, "data": {"train": str(tiny_shards)}}
    values |= {"train": {"batch_size": 8, "device": "cpu", "max_steps": 6, "micro_batch_tokens": 4096}}
    (folder / "run.json").write_text(json.dumps(values))
    train(load_config(folder / "run.json"), str(folder / "run.json"))
    return folder / "run"


def machine_file(path, **changed):
    """Figures of two CPU ranks, round ones."""
    rates = {"half": 2e10, "single": 1e10, "memory": 5e9, "started": 1e-5, "host": 1e9, "host_memory": 1e9}
    values = {"device": "cpu", "ranks": 2, "nodes": 1, "memory": 10**10, "rates": rates | {"at_once": False}}
    values |= {"links": {"within": {"bandwidth": 1e9, "latency": 1e-4}, "between": None}} | changed
    path.write_text(json.dumps(values))
    return path


def test_a_finished_run_is_held_against_its_plan(capsys, run_dir):
    logs = run_dir / "logs.jsonl"
    lines = [json.loads(line) for line in logs.read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    for number, step in enumerate(steps):  # the first two of six took long
        step["tokens_per_second"] = step["tokens"] / (100.0 if number < 2 else 4.0)
    logs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["plan", "--after", str(run_dir), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    by_name = {one["name"]: one for one in facts["compared"]}
    seconds, tokens = by_name["seconds of a step"], by_name["tokens of a step"]
    assert facts["candidate"] == "cpu" and seconds["logged"] == pytest.approx(4.0)
    assert seconds["off"] == pytest.approx(seconds["planned"] / 4.0 - 1) and seconds["off"] < -0.5
    assert tokens["logged"] == pytest.approx(sum(step["tokens"] for step in steps[2:]) / 4)
    assert abs(tokens["off"]) < 0.2
    assert main(["plan", "--after", str(run_dir)]) == 0
    said = capsys.readouterr().out
    assert "the run is slower than planned; " in said and "launch doctor --measure" in said


def test_what_is_no_run_or_another_is_said(capsys, run_dir, tmp_path):
    assert main(["plan", "--after", str(tmp_path)]) == 2
    assert "holds no run of ours" in capsys.readouterr().err
    assert main(["plan", "--after", str(run_dir), "--gpus-per-node", "3"]) == 2
    assert "the run had 1 rank(s)" in capsys.readouterr().err
    assert main(["plan", "--after", str(run_dir), "optim.lr=1"]) == 2
    assert "leave out --config, --engine and overrides" in capsys.readouterr().err
    assert main(["plan"]) == 2
    assert "--config is missing" in capsys.readouterr().err


def test_a_measured_machine_takes_the_place_of_the_table(tmp_path):
    found = of_machine(str(machine_file(tmp_path / "machine.json")), "cpu")
    assert found.rates.products("fp32") == 1e10 and found.rates.products("bf16") == 2e10
    assert found.within.bandwidth == 1e9 and found.between == found.within and found.memory == 10**10
    assert "measured on 2 rank(s)" in found.notes[0]


@pytest.mark.parametrize("changed", [{"rates": {}}, {"links": 3}, {"device": "cuda"}])
def test_a_damaged_file_or_one_of_another_device_is_refused(capsys, tmp_path, run_dir, changed):
    path = machine_file(tmp_path / "machine.json", **changed)
    assert main(["plan", "--after", str(run_dir), "--machine", str(path)]) == 2
    assert "error: --machine: " in capsys.readouterr().err


def test_a_fit_gives_back_latency_and_bandwidth():
    """An all-reduce among 5: 2 x 3 messages of a tree, and 8/5 of the bytes."""
    seconds = {size: 6 * 2e-5 + 8 / 5 * size / 3e9 for size in (4096, 10**6, 10**7, 10**8)}
    found = fit(seconds, 5)
    assert found["latency"] == pytest.approx(2e-5) and found["bandwidth"] == pytest.approx(3e9)
    assert fit({}, 1) is None


def test_a_card_is_counted_at_a_share_of_what_its_maker_states():
    found = of_gpu(GPUS["H100"], "cuda", 8)
    assert found.rates.products("bf16") == pytest.approx(0.6 * 989e12)
    assert found.rates.products("fp32") == pytest.approx(0.6 * 67e12)  # without TF32
    assert found.rates.memory == pytest.approx(0.8 * 3.35e12) and found.within.bandwidth == pytest.approx(315e9)
    assert found.rates.host_memory == pytest.approx(25e9)  # of a node's 200, shared by eight
    assert of_gpu(GPUS["H100"], "cuda", 8, mfu=0.4).rates.half == pytest.approx(0.4 * 989e12)
    assert of_cpu(8, 2).rates.single == 2 * of_cpu(8, 4).rates.single


@pytest.mark.parametrize(
    ("memory", "name"),
    [(80e9, "A100-80"), (24 * 2**30, "RTX3090"), (24e9, "RTX3090"), (40e9, "A100-40"), (1e12, "MI300X")],
)
def test_a_card_that_nobody_named_is_the_slowest_with_its_memory(memory, name):
    assert assumed(int(memory))[0] == name
